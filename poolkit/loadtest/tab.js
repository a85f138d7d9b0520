// Puts the charts under the table of the tab "Connections" of Locust's own page.
//
// The page is React's: its tab and table come from Locust's `extended_tabs` and
// `extended_tables`, and stay as they are. Where this finds no place, the table stands alone
// and the page /connections has the charts.
(() => {
  const TAB = "connections";
  const charts = document.createElement("poolkit-connections");
  charts.setAttribute("src", "connections.json");
  charts.setAttribute("without-table", "");

  function isDark() {
    const parts = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255];
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] < 128;
  }

  function place() {
    const chosen = new URL(location.href).searchParams.get("tab") === TAB;
    const tabs = document.querySelector('[role="tablist"]');
    const container = tabs?.closest(".MuiContainer-root");
    if (!chosen || !container) {
      charts.remove();
      return;
    }
    const theme = isDark() ? "dark" : "light";
    if (charts.getAttribute("theme") !== theme) charts.setAttribute("theme", theme);
    if (charts.parentNode !== container || container.lastElementChild !== charts) container.append(charts);
  }

  new MutationObserver(place).observe(document.getElementById("root"), { childList: true, subtree: true });
  new MutationObserver(place).observe(document.head, { childList: true, characterData: true, subtree: true });
  addEventListener("popstate", place);
  place();
})();
