// Runs after the page under test is drawn, and stores its findings in the page.
const marks = (chart) => chart.querySelectorAll(
  ".trace path, .trace .point, .point path, .hm image, .heatmaplayer image, .errorbar path").length;

function collectFacts() {
  facts.charts = [...document.querySelectorAll(".plot")].map((chart) => ({
    id: chart.id,
    label: chart.getAttribute("aria-label"),
    hidden: chart.offsetParent === null,
    marks: marks(chart),
  }));
  facts.tables = Object.fromEntries([...document.querySelectorAll("table")].map((table) => [
    table.caption.id,
    [...table.rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim())),
  ]));
  facts.background = getComputedStyle(document.body).backgroundColor;
  facts.requests = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !/^(data|blob):/.test(name));
}

// Changes a selection as with a keyboard: focus, another option, a change event.
function choose(select) {
  const before = document.querySelector(".plot").closest("main").innerHTML.length;
  select.focus();
  const focused = document.activeElement === select;
  select.selectedIndex = select.options.length - 1;
  select.dispatchEvent(new Event("change", { bubbles: true }));
  return { focused, options: select.options.length, before };
}

setTimeout(() => {
  collectFacts();
  facts.selects = [...document.querySelectorAll("select")].map(choose);
  for (const button of document.querySelectorAll("#downloads button")) {
    button.focus();
    button.click();
  }
  // The contents of a download may take longer than a second on a busy machine.
  setTimeout(() => Promise.all(pendingDownloads).then(() => {
    const text = document.createElement("pre");
    text.id = "facts";
    text.textContent = JSON.stringify(facts).replace(/[<>&]/g,
      (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
    document.body.append(text);
  }), 1000);
}, 3000);
