// Puts the charts under the table of the tab "Connections" of Locust's own page.
//
// The page is React's: its tab and table come from Locust's `extended_tabs` and `extended_tables`,
// and are not changed. Where this finds no place for the charts, only the table is shown, and the
// page /connections has the charts.
(() => {
  const TAB = "connections";
  const charts = document.createElement("poolkit-connections");
  charts.setAttribute("src", "connections.json");
  charts.setAttribute("theme", "page");
  charts.setAttribute("without-table", "");

  function place() {
    const chosen = new URL(location.href).searchParams.get("tab") === TAB;
    const tabs = document.querySelector('[role="tablist"]');
    const container = tabs?.closest(".MuiContainer-root");
    if (!chosen || !container) {
      charts.remove();
      return;
    }
    if (charts.parentNode !== container || container.lastElementChild !== charts) container.append(charts);
  }

  new MutationObserver(place).observe(document.getElementById("root"), { childList: true, subtree: true });
  addEventListener("popstate", place);
  place();
})();
