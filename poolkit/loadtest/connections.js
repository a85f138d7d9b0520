// <poolkit-connections>: charts of one load test, connections beside requests and latency.
//
// With an attribute src it fetches the document from there every second; without one it draws the
// JSON in the script element inside it.
//
// Attributes: theme ("page": light or dark as the page around it; otherwise as the system is),
// without-table. Nothing but `src` is fetched. Names come from the server: they are set as text,
// never as HTML.
(() => {
  const EVERY_MS = 1000;
  const HEIGHT = 168, LEFT = 48, RIGHT = 12, TOP = 16, BOTTOM = 22;
  const NAME_HEIGHT = 15;
  // Lines differ in more than their colour, in the chart and in its legend.
  const STROKES = [["", "solid"], ["7 3", "dashed"], ["2 3", "dotted"]];
  const SVG = "http://www.w3.org/2000/svg";

  // As in the reports of `poolkit compare`: at least 3:1 on white and on black.
  const TARGETS = {
    lambda: "#d1552b", lambda_warm: "#b58900", lambda_proxy: "#b4609f",
    web: "#2f7ac0", web_async: "#2a9db5", worker: "#3b9460",
  };
  const SPARE = ["#8768c8", "#7d7a40", "#c2506b", "#6b7f94"];
  const OTHERS = "#8c959f";
  const STATES = {
    active: ["active", "#3b9460"],
    idle_in_transaction: ["idle in transaction", "#d1552b"],
    other: ["other", "#8768c8"],
    idle: ["idle", "#8a97a5"],
  };

  const CSS = `
    :host { color-scheme: light dark; display: block; }
    [hidden] { display: none !important; }
    :host([data-shade="light"]) { color-scheme: light; }
    :host([data-shade="dark"]) { color-scheme: dark; }
    .all {
      --ink: light-dark(#1f2328, #e6edf3); --soft: light-dark(#59636e, #9aa4af);
      --faint: light-dark(#e4e7eb, #2d333b); --card: light-dark(#f6f8fa, #161b22);
      --warn: light-dark(#9a5b00, #e0a84a); --warn-card: light-dark(#fff6e5, #2a2113);
      color: var(--ink); font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
    }
    h2 { font-size: 1.375rem; line-height: 1.2; margin: 1.25rem 0 .25rem; }
    h3 { font-size: .9375rem; margin: 0; }
    p { margin: 0; } .soft { color: var(--soft); }
    .note { white-space: pre-line; background: var(--warn-card); color: var(--warn); border-radius: 6px; padding: .6rem .9rem; margin: .75rem 0; }
    .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0 1.5rem; padding: 0; }
    .tiles > div { background: var(--card); border-radius: 8px; padding: .75rem 1rem; }
    dt { color: var(--soft); font-size: .8125rem; }
    dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.25; }
    .tiles .others { font-size: .8125rem; font-weight: 400; color: var(--soft); }
    dd small { font-size: .8125rem; font-weight: 400; color: var(--soft); }
    meter { display: block; width: 100%; height: .5rem; margin-top: .35rem; }
    .verdicts { list-style: none; margin: -.5rem 0 1.5rem; padding: 0; font-variant-numeric: tabular-nums; }
    .verdicts li::before { display: inline-block; width: 1.4em; font-weight: 600; color: var(--soft); content: "–"; }
    .verdicts .passed::before { content: "✓" / "met: "; color: ${STATES.active[1]}; }
    .verdicts .failed::before { content: "✗" / "not met: "; color: ${TARGETS.lambda}; }
    .verdicts .unknown::before { content: "?" / "unknown: "; color: var(--warn); }
    .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem 2rem; }
    figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: space-between; }
    figcaption { display: flex; flex-wrap: wrap; gap: .15rem 1rem; align-items: baseline; justify-content: space-between; }
    .legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .8125rem; color: var(--soft); }
    .legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }
    .legend i.of-line { width: 1.4em; height: 0; border-top: 3px solid; border-radius: 0; vertical-align: .25em; }
    .legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
    svg { display: block; width: 100%; height: ${HEIGHT}px; overflow: visible; margin-top: .35rem; }
    svg text { font: 11px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
    .grid { stroke: var(--faint); shape-rendering: crispEdges; }
    .limit { stroke: var(--warn); stroke-dasharray: 5 4; } .limit-name { fill: var(--warn); }
    .cursor line { stroke: var(--ink); shape-rendering: crispEdges; }
    .cursor text { fill: var(--ink); font-weight: 600; }
    .cursor circle { stroke: var(--ink); stroke-width: 1; }
    svg text.layer { fill: var(--ink); pointer-events: none; }
    svg { touch-action: pan-y; cursor: crosshair; }
    .time { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem .9rem; margin: 0 0 1.25rem; }
    .time label { font-weight: 600; }
    .time input { flex: 1 1 14rem; min-width: 0; margin: 0; height: 1.5rem; accent-color: ${TARGETS.web}; }
    .time output { font-variant-numeric: tabular-nums; }
    .time button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--soft); border-radius: 6px; padding: .15rem .75rem; min-height: 1.75rem; }
    .time button:disabled { visibility: hidden; }
    :focus-visible { outline: 2px solid ${TARGETS.web}; outline-offset: 2px; }
    .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
    .table { margin-top: 1.75rem; } .scroll { overflow-x: auto; }
    .key { font-size: .8125rem; margin-top: .4rem; }
    table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
    caption { text-align: left; font-weight: 600; padding-bottom: .35rem; font-size: .9375rem; }
    th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
    th { font-weight: 500; color: var(--soft); } tbody th { color: var(--ink); font-weight: 600; }
    caption small { font-weight: 400; color: var(--soft); }
    th:first-child { text-align: left; padding-left: 0; }
    .total > * { border-top: 2px solid var(--faint); border-bottom: 0; }
  `;

  // -- small pieces -------------------------------------------------------------------------

  function html(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function svg(name, attributes = {}, text = "") {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }

  // Of Locust's page, whose shade can be switched while it is open.
  function shadeOfPage() {
    const [red, green, blue, alpha = 1] = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
    return alpha > 0 && 0.2126 * red + 0.7152 * green + 0.0722 * blue < 128 ? "dark" : "light";
  }

  const last = (values) => (values?.length ? values[values.length - 1] : null);

  function figure(value) {
    if (value === null || value === undefined) return "–";
    const digits = Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : 1;
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  // A histogram has three digits.
  function ms(value) {
    if (value === null || value === undefined) return "–";
    const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
    return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  function loop(load) {
    if (load.loop === "closed") return "Closed loop: each user waits for its answer before it goes on; latencies count from the sending of a request.";
    const counts = [`${figure(load.arrivals)} scheduled`, `${figure(load.late)} late`, `${figure(load.unsent)} dropped`, `${figure(load.unanswered)} timed out`];
    const outcomes = [`${figure(load.in_time)} answered in time`, `${figure(load.answered_late)} late`, `${figure(load.failed)} failed`, `${figure(load.unsent + load.unanswered)} without an answer`];
    return `Open loop, ${figure(load.rate)} arrivals a second (${load.kind}), however slow the server is; latencies count from the scheduled moment of a task. ${counts.join(", ")}. Of these, ${outcomes.join(", ")}: in time is begun at most 50 ms late and answered within ${figure(load.answer_within_s)} s of the scheduled moment.`;
  }

  // A table that may be wider than the page, over an explanation of its headings that never is.
  function scrolled(label, key) {
    const region = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label });
    return { region, all: html("div", { class: "table", hidden: "" }, region, html("p", { class: "soft key" }, key)) };
  }

  function span(seconds) {
    const s = Math.round(seconds);
    if (s < 60) return `${s} s`;
    const rest = (value) => String(value).padStart(2, "0");
    if (s < 3600) return `${Math.floor(s / 60)}:${rest(s % 60)}`;
    return `${Math.floor(s / 3600)}:${rest(Math.floor(s / 60) % 60)}:${rest(s % 60)}`;
  }

  function colours(names) {
    const others = names.filter((name) => !(name in TARGETS));
    return names.map((name) => TARGETS[name] ?? SPARE[others.indexOf(name) % SPARE.length]);
  }

  // Round steps, so that there are about `count` lines from 0 to the highest value.
  function ticks(highest, count) {
    const rough = Math.max(highest, 1e-9) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, ...(power >= 10 ? [2.5] : []), 5, 10].map((f) => f * power).find((s) => s >= rough);
    return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, i) => i * step);
  }

  // As on the axes of Locust's own charts: the browser's time zone and format.
  const clock = (time) => new Date(time * 1000).toLocaleTimeString();

  // Round clock times between two moments, as many as have room.
  function timeTicks(from, to, width) {
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
    const most = Math.max(2, Math.floor(width / 90));
    const step = steps.find((s) => (to - from) / s <= most) ?? 86400;
    const first = Math.ceil(from / step) * step;
    return Array.from({ length: Math.max(0, Math.floor((to - first) / step) + 1) }, (_, i) => first + i * step);
  }

  // -- one chart ----------------------------------------------------------------------------

  // series: [{name, colour, values}], drawn on one another when `stacked`.
  class Chart {
    constructor(title, unit, { stacked = false, least = 1, shown = figure } = {}) {
      Object.assign(this, { title, unit, stacked, least, shown });
      this.legend = html("span", { class: "legend" });
      this.picture = svg("svg", { role: "img" });
      this.figure = html("figure", {}, html("figcaption", {}, html("h3", {}, title), this.legend), this.picture);
    }

    draw(times, started, series, limit, at) {
      const width = this.picture.clientWidth || 480;
      const tops = this.stacked ? stack(series) : series.map(({ values }) => ({ low: null, high: values }));
      const highest = Math.max(this.least, ...tops.flatMap(({ high }) => high.filter((v) => v !== null)));
      // A limit far above the values would flatten the chart: it is shown once they are near it.
      const near = limit && limit <= 2.5 * highest ? limit : 0;
      const lines = ticks(Math.max(highest * 1.04, near), 4);
      const end = Math.max(last(times) - started, 10);
      const x = (t) => LEFT + ((t - started) / end) * (width - LEFT - RIGHT);
      const y = (v) => HEIGHT - BOTTOM - (v / last(lines)) * (HEIGHT - TOP - BOTTOM);
      Object.assign(this, { times, series, tops, width, x, y });
      this.cursor = svg("g", { class: "cursor" });
      this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      this.picture.replaceChildren(
        ...this.axes(lines, started, end),
        ...series.flatMap((one, i) => this.marks(one, i)).reverse(),
        ...(this.stacked ? series.flatMap((one, i) => this.layerName(one, tops[i])) : []),
        ...(near ? this.limit(near, y, width) : []),
        this.cursor,
      );
      this.point(at);
    }

    axes(lines, started, end) {
      const { x, y, width } = this;
      const rows = lines.flatMap((v) => [
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }),
        svg("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, v.toLocaleString("en")),
      ]);
      // At either end a label would reach beyond the chart.
      const moments = timeTicks(started, started + end, width - LEFT - RIGHT).map((t) => svg("text",
        { class: "moment", x: Math.min(Math.max(x(t), LEFT), width - RIGHT - 26), y: HEIGHT - 4, "text-anchor": "middle" }, clock(t)));
      return [...rows, ...moments];
    }

    marks({ name, colour }, i) {
      const { times, x, y, tops } = this;
      const { low, high } = tops[i];
      const dashes = this.stacked ? "" : STROKES[i % STROKES.length][0];
      const paths = [];
      for (const [from, to] of known(high)) {
        const upper = points(times, high, from, to, x, y);
        if (this.stacked) {
          const lower = points(times, low, from, to, x, y).reverse();
          paths.push(svg("path", { d: `M${upper.concat(lower).join("L")}Z`, fill: colour, "fill-opacity": 0.55 }));
        }
        paths.push(svg("path", { class: "line", d: `M${upper.join("L")}`, stroke: colour, "stroke-dasharray": dashes, "data-series": name }));
      }
      return paths;
    }

    // The name of a layer where it is thickest, if it has room there.
    layerName({ name }, { low, high }) {
      const thick = high.map((v, i) => (v === null ? 0 : this.y(low[i]) - this.y(v)));
      const most = Math.max(...thick);
      if (most < NAME_HEIGHT) return [];
      const same = thick.flatMap((t, i) => (t > most - 0.5 ? [i] : []));
      const i = same[Math.floor(same.length / 2)];
      const half = 3.2 * name.length;
      const x = Math.min(Math.max(this.x(this.times[i]), LEFT + half), this.width - RIGHT - half);
      const middle = (this.y(low[i]) + this.y(high[i])) / 2 + 4;
      return [svg("text", { class: "layer", x, y: middle, "text-anchor": "middle" }, name)];
    }

    limit(value, y, width) {
      return [
        svg("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "limit-name", x: width - RIGHT, y: y(value) - 4, "text-anchor": "end" }, `usable: ${value}`),
      ];
    }

    // Shows the values at a moment; those of the last one without it.
    point(at) {
      const { series, tops, times, x, y, width } = this;
      const value = ({ values }) => this.shown(at === null ? last(values) : values[at]);
      this.cursor.replaceChildren();
      if (at !== null) {
        const cx = x(times[at]);
        const from = cx > width - 90;
        this.cursor.append(
          svg("line", { x1: cx, x2: cx, y1: 2, y2: HEIGHT - BOTTOM }),
          svg("text", { x: cx + (from ? -5 : 5), y: 11, "text-anchor": from ? "end" : "start" }, clock(times[at])),
          ...series.flatMap(({ colour }, i) => (tops[i].high[at] === null ? []
            : [svg("circle", { cx, cy: y(tops[i].high[at]), r: 3.5, fill: colour })])),
        );
      }
      const swatch = ({ colour }, i) => (this.stacked ? html("i", { style: `background:${colour}` })
        : html("i", { class: "of-line", style: `border-top: 3px ${STROKES[i % STROKES.length][1]} ${colour}` }));
      this.legend.replaceChildren(...series.map((one, i) => html("span", {}, swatch(one, i), `${one.name} `, html("b", {}, value(one)))));
      const text = series.map((one) => `${one.name} ${value(one)}`).join(", ");
      this.text = `${this.title}: ${text || "nothing yet"}${this.unit ? ` (${this.unit})` : ""}`;
      this.picture.setAttribute("aria-label", this.text);
    }
  }

  function stack(series) {
    let low = series[0]?.values.map((v) => (v === null ? null : 0)) ?? [];
    return series.map(({ values }) => {
      const high = values.map((v, i) => (v === null ? null : low[i] + v));
      const layer = { low, high };
      low = high;
      return layer;
    });
  }

  // The stretches without a gap, as pairs of indices.
  function known(values) {
    const stretches = [];
    values.forEach((value, i) => {
      if (value === null) return;
      if (last(stretches)?.[1] === i - 1) last(stretches)[1] = i;
      else stretches.push([i, i]);
    });
    return stretches;
  }

  // The index of the time that is drawn nearest to a place.
  function nearest(times, x, place) {
    const far = times.map((t) => Math.abs(x(t) - place));
    return far.indexOf(Math.min(...far));
  }

  function points(times, values, from, to, x, y) {
    const found = [];
    for (let i = from; i <= to; i++) found.push(`${x(times[i]).toFixed(1)},${y(values[i]).toFixed(1)}`);
    return from === to ? [...found, `${(x(times[from]) + 1).toFixed(1)},${y(values[from]).toFixed(1)}`] : found;
  }

  // -- the element --------------------------------------------------------------------------

  class Connections extends HTMLElement {
    connectedCallback() {
      if (!this.shadowRoot) this.build();
      this.resized = new ResizeObserver(() => this.draw());
      this.resized.observe(this);
      this.adapt();
      addEventListener("load", () => this.adapt());
      if (this.hasAttribute("src")) this.follow();
      else this.show(JSON.parse(this.querySelector("script").textContent));
    }

    disconnectedCallback() {
      this.resized.disconnect();
      clearTimeout(this.timer);
    }

    build() {
      this.pinned = this.hovered = null;
      this.charts = {
        targets: new Chart("Connections by target", "", { stacked: true, least: 4 }),
        states: new Chart("Connections by state", "", { stacked: true, least: 4 }),
        requests: new Chart("Requests per second", "a second"),
        latency: new Chart("Latency, ms", "ms", { shown: ms }),
        users: new Chart("Users", "", { least: 4 }),
        arrivals: new Chart("Arrivals per second", "a second"),
      };
      this.heading = html("h2", {}, "Connections and latency");
      this.about = html("p", { class: "soft" }, "Waiting for the first second of the run.");
      this.note = html("p", { class: "note", role: "status", hidden: "" });
      this.tiles = html("dl", { class: "tiles" });
      this.verdicts = html("ul", { class: "verdicts", "aria-label": "Thresholds" });
      this.table = scrolled("Connections by target", "Instances: different names behind the colon of application_name. "
        + "Peak: the most connections of the target at once in this run.");
      this.client = scrolled("Connections of the load generator", "Requests each: requests sent over one connection, on average. "
        + "Resent: requests that FastHttpUser sent again, since the server had closed the connection without an answer. "
        + "Connect time: name resolution, TCP, and the TLS handshake.");
      this.latencies = scrolled("Latency by name", "p95: 95 % of the answered requests took at most this time. "
        + "Requests: answered and failed ones. A failed request has no latency.");
      this.buildTime();
      const figures = Object.values(this.charts).map((chart) => chart.figure);
      const all = html("div", { class: "all" }, this.heading, this.about, this.note, this.tiles, this.verdicts, this.time,
        html("div", { class: "charts" }, ...figures), this.latencies.all, this.client.all, this.table.all);
      this.attachShadow({ mode: "open" }).append(html("style", {}, CSS), all);
      for (const chart of Object.values(this.charts)) this.listen(chart);
    }

    // The moment whose values all charts show; a keyboard, a finger and a screen reader can set it too.
    buildTime() {
      this.slider = html("input", { id: "time", type: "range", min: 0, step: 1 });
      this.moment = html("output", { for: "time" });
      this.latest = html("button", { type: "button" }, this.hasAttribute("src") ? "Latest" : "End");
      this.time = html("div", { class: "time", hidden: "" }, html("label", { for: "time" }, "Time"), this.slider, this.moment, this.latest);
      this.slider.addEventListener("input", () => {
        const at = Number(this.slider.value);
        this.pin(at < this.found.series.time.length - 1 ? at : null);
      });
      this.latest.addEventListener("click", () => { this.slider.focus(); this.pin(null); });
    }

    // A moment stays chosen by its time: points are joined when a run gets long.
    pin(at) {
      this.pinned = at === null ? null : this.found.series.time[at];
      this.pointAt(at);
    }

    pointAt(at) {
      const { time } = this.found.series;
      for (const chart of Object.values(this.charts)) if (!chart.figure.hidden) chart.point(at);
      const shown = time[at ?? time.length - 1];
      const since = `${span(shown - this.started)} after the start`;
      const text = at === null ? `${this.hasAttribute("src") ? "latest" : "end"}, ${clock(shown)}` : `${clock(shown)}, ${since}`;
      this.slider.max = time.length - 1;
      this.slider.value = at ?? time.length - 1;
      this.moment.textContent = text;
      this.latest.disabled = this.pinned === null;
      const values = Object.values(this.charts).filter((chart) => !chart.figure.hidden).map((chart) => chart.text);
      this.slider.setAttribute("aria-valuetext", `${text}. ${values.join(". ")}`);
    }

    // All charts share one cursor: what else happened at this moment?
    listen(chart) {
      const under = (event) => nearest(this.found.series.time, chart.x, event.clientX - chart.picture.getBoundingClientRect().left);
      const has = () => this.found?.series.time.length;
      chart.picture.addEventListener("pointermove", (event) => {
        if (!has()) return;
        this.hovered = this.found.series.time[under(event)];
        this.pointAt(this.shownAt());
      });
      chart.picture.addEventListener("pointerdown", (event) => { if (has()) this.pin(under(event)); });
      chart.picture.addEventListener("pointerleave", () => {
        this.hovered = null;
        if (has()) this.pointAt(this.shownAt());
      });
    }

    shownAt() {
      const moment = this.hovered ?? this.pinned;
      return moment === null ? null : nearest(this.found.series.time, (t) => t, moment);
    }

    async follow() {
      try {
        const answer = await fetch(this.getAttribute("src"), { cache: "no-store" });
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        this.show(await answer.json());
      } catch (error) {
        this.showNote(`Locust does not answer (${error.message}); the charts show the last figures received.`);
      }
      if (this.isConnected) this.timer = setTimeout(() => this.follow(), document.hidden ? 5 * EVERY_MS : EVERY_MS);
    }

    adapt() {
      if (this.getAttribute("theme") === "page") this.dataset.shade = shadeOfPage();
    }

    show(found) {
      this.adapt();
      this.found = found;
      this.dataset.points = found.series.time.length;
      this.describe();
      this.draw();
    }

    showNote(text) {
      this.note.hidden = !text;
      if (this.note.textContent !== text) this.note.textContent = text;
    }

    describe() {
      const { note, server, partial, step_s: step, load, lost } = this.found;
      const every = step > 1 ? ` A point stands for ${step} s.` : "";
      this.about.textContent = server
        ? `PostgreSQL ${server.version}, ${server.usable} of ${server.max_connections} connections usable. Each second shows the sample with the most connections.${every}`
        : `HTTP only.${every}`;
      this.about.append(html("br"), loop(load));
      this.showNote([
        ...(load.saturated_by ? [`Saturated: ${load.saturated_by}.`] : []),
        ...(partial ? ["Partial: the run ended before its planned end."] : []),
        ...lost.map((line) => `${line}.`),
        ...(note ? [`Connections are not measured: ${note}.`] : []),
      ].join("\n"));
      this.fillTiles();
      this.fillVerdicts();
      this.fillLatencies();
      this.fillClient();
      if (!this.hasAttribute("without-table")) this.fillTable();
    }

    fillTiles() {
      const { now, server, run, series, latency_ms: latencies } = this.found;
      const whole = last(latencies);
      const tile = (name, value, unit, ...more) =>
        html("div", {}, html("dt", {}, name), html("dd", {}, value, html("small", {}, ` ${unit}`)), ...more);
      const live = this.hasAttribute("src");
      // The limit is the server's, so the figure beside it is, too.
      const count = live ? now && now.connections + now.other_databases : run?.server_peak;
      const meter = html("meter", { min: 0, max: server?.usable ?? 1, high: (server?.usable ?? 1) * 0.8, value: count ?? 0, "aria-label": "share of the usable connections" });
      const others = last(series.other_databases) || run?.server_peak > run?.peak;
      const database = server ? [
        tile(live ? "Connections" : "Connections, peak", figure(count), `of ${server.usable}`, meter,
          ...(live && now?.other_databases ? [html("dd", { class: "others" }, `${figure(now.other_databases)} in other databases`)] : []),
          ...(!live && others ? [html("dd", { class: "others" }, `in this database ${figure(run.peak)}`)] : [])),
        live ? tile("Peak", figure(run?.peak), others ? "in this database" : "connections")
          : tile("Mean", figure(run?.mean), others ? "in this database" : "connections"),
        live ? tile("Opened", figure(last(series.opened_per_s)), "a second") : tile("Opened", figure(run?.opened), "connections"),
      ] : [];
      const http = live ? [
        tile("Requests", figure(last(series.requests_per_s)), "a second"),
        tile("p95", ms(last(series.p95_ms)), "ms"),
        tile("Users", figure(last(series.users)), ""),
      ] : [
        tile("Requests", figure(whole.requests), `${figure(whole.failures)} failed`),
        tile("p95", ms(whole.p95), "ms"),
        tile("p99", ms(whole.p99), "ms"),
      ];
      this.tiles.replaceChildren(...database, ...http);
    }

    fillVerdicts() {
      const { thresholds, limit } = this.found;
      // A search for the limit judges its steps instead of the run.
      const statuses = { held: "passed", failed: "failed", saturated: "unknown" };
      const steps = (limit?.steps ?? []).map(({ per_s, outcome, reason }) => (
        { status: statuses[outcome], words: `${per_s} tasks/s: ${outcome}${reason && `, ${reason}`}` }));
      const result = limit ? [{ status: limit.found ? "passed" : "unknown", words: limit.words }] : [];
      const shown = [...thresholds, ...result, ...steps];
      this.verdicts.hidden = !shown.length;
      this.verdicts.replaceChildren(...shown.map(({ status, words }) => html("li", { class: status }, words)));
    }

    fillLatencies() {
      const columns = { requests: "Requests", failures: "Failed", p50: "p50", p90: "p90", p95: "p95", p99: "p99",
        "p99.9": "p99.9", max: "Maximum", mean: "Mean" };
      const shown = (row, key) => (["requests", "failures"].includes(key) ? figure(row[key]) : ms(row[key]));
      const head = html("tr", {}, ...["Request", ...Object.values(columns)].map((name) => html("th", { scope: "col" }, name)));
      const rows = this.found.latency_ms;
      const body = rows.map((row, i) => html("tr", i < rows.length - 1 ? {} : { class: "total" },
        html("th", { scope: "row" }, `${row.method} ${row.name}`.trim()),
        ...Object.keys(columns).map((key) => html("td", {}, shown(row, key)))));
      this.latencies.all.hidden = !last(rows).requests;
      this.latencies.region.replaceChildren(html("table", {},
        html("caption", {}, "Latency, ms", html("small", {}, " of answered requests, to three digits")),
        html("thead", {}, head), html("tbody", {}, ...body)));
    }

    fillClient() {
      const { client } = this.found;
      this.client.all.hidden = !client;
      if (!client) return;
      const times = { p50: "p50", p95: "p95", p99: "p99", max: "Maximum" };
      const columns = [["Opened", figure(client.connections)], ["With TLS", figure(client.tls)], ["Failed", figure(client.failed)],
        ["Requests", figure(client.requests)], ["Resent", figure(client.resent)], ["Requests each", figure(client.requests_per_connection)],
        ...Object.entries(times).map(([key, name]) => [`${name}, ms`, ms(client.connect_ms[key])])];
      this.client.region.replaceChildren(html("table", {},
        html("caption", {}, "Connections of the load generator", html("small", {}, client.note && `: ${client.note}`)),
        html("thead", {}, html("tr", {}, ...columns.map(([name]) => html("th", { scope: "col" }, name)))),
        html("tbody", {}, html("tr", {}, ...columns.map(([, value]) => html("td", {}, value))))));
    }

    fillTable() {
      const rows = this.found.now?.targets ?? [];
      const columns = { instances: "Instances", active: "Active", idle_in_transaction: "Idle in transaction",
        other: "Other", idle: "Idle", connections: "Connections", peak: "Peak" };
      const head = html("tr", {}, ...["Target", ...Object.values(columns)].map((name) => html("th", { scope: "col" }, name)));
      const body = rows.map((row) => html("tr", {}, html("th", { scope: "row" }, row.name),
        ...Object.keys(columns).map((key) => html("td", {}, figure(row[key])))));
      this.table.all.hidden = !rows.length;
      this.table.region.replaceChildren(html("table", {}, html("caption", {}, this.hasAttribute("src") ? "Now" : "At the end"),
        html("thead", {}, head), html("tbody", {}, ...body)));
    }

    draw() {
      if (!this.found?.series.time.length) return;
      const { series, server, started, step_s: step } = this.found;
      // As Locust's charts, from the start of the test; a clock that was set back cannot be drawn.
      this.started = Math.min(started, series.time[0] - step);
      const at = this.shownAt();
      const names = Object.keys(series.targets);
      const shades = colours(names);
      const others = series.other_databases.some((v) => v)
        ? [{ name: "other databases", colour: OTHERS, values: series.other_databases }] : [];
      const wanted = series.wanted_per_s ?? [];
      const drawn = {
        targets: [[...names.map((name, i) => ({ name, colour: shades[i], values: series.targets[name] })), ...others], server?.usable],
        states: [Object.keys(STATES).filter((key) => series.states[key].some((v) => v))
          .map((key) => ({ name: STATES[key][0], colour: STATES[key][1], values: series.states[key] })).concat(others), server?.usable],
        requests: [[{ name: "requests", colour: TARGETS.web, values: series.requests_per_s },
          { name: "failures", colour: TARGETS.lambda, values: series.failures_per_s }]],
        latency: [[{ name: "p50", colour: TARGETS.web_async, values: series.p50_ms },
          { name: "p95", colour: TARGETS.lambda_proxy, values: series.p95_ms },
          { name: "p99", colour: TARGETS.lambda, values: series.p99_ms }]],
        users: [[{ name: "users", colour: SPARE[0], values: series.users }]],
        arrivals: [[{ name: "begun", colour: TARGETS.worker, values: series.arrivals_per_s ?? [] },
          { name: "wanted", colour: OTHERS, values: wanted }]],
      };
      for (const key of ["targets", "states"]) this.charts[key].figure.hidden = !server;
      this.charts.arrivals.figure.hidden = !wanted.some((v) => v !== null);
      this.time.hidden = false;
      for (const [key, [lines, limit]] of Object.entries(drawn)) {
        if (!this.charts[key].figure.hidden) this.charts[key].draw(series.time, this.started, lines, limit, at);
      }
      this.pointAt(at);
    }
  }

  if (!customElements.get("poolkit-connections")) customElements.define("poolkit-connections", Connections);
})();
