"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const ids = (text) => text.split(" ").filter(Boolean);

  // Charts.

  const drawings = read("charts");
  const charts = new Map();
  for (const { id, views } of drawings.charts) {
    const element = document.getElementById(id);
    charts.set(id, { element, views, view: 0, width: 0, hidden: new Set() });
  }

  // Resolves CSS variables to their current colours.
  function themed(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[a-z0-9]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) {
      const plain = value.length > 0 && (value[0] === null || typeof value[0] === "number");
      return plain ? value : value.map((item) => themed(item, style));
    }
    if (value !== null && typeof value === "object") {
      const entries = Object.entries(value);
      return Object.fromEntries(entries.map(([key, item]) => [key, themed(item, style)]));
    }
    return value;
  }

  function draw(chart) {
    const figure = chart.views[chart.view];
    const style = getComputedStyle(root);
    const data = themed(figure.data, style);
    for (const trace of data) {
      trace.visible = !chart.hidden.has(trace.legendgroup);
    }
    const layout = themed(figure.layout, style);
    chart.width = chart.element.clientWidth;
    layout.width = Math.max(chart.width, 120);
    // Keeps the zoom until another view is chosen.
    layout.uirevision = chart.view;
    if (matchMedia("(pointer: coarse)").matches) {
      layout.dragmode = false;
    }
    Plotly.react(chart.element, data, layout, drawings.config);
  }

  const drawAll = () => charts.forEach(draw);

  const waiting = [...charts.values()];
  function drawNext() {
    const chart = waiting.shift();
    if (!chart) return;
    if (chart.width === 0) draw(chart);
    setTimeout(drawNext);
  }
  drawNext();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => {
      for (const chart of charts.values()) {
        if (chart.element.clientWidth !== chart.width) draw(chart);
      }
    }, 100);
  });

  let unfolded = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const details of unfolded) details.open = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    for (const details of unfolded) details.open = false;
    drawAll();
  });

  // Controls.

  for (const legend of document.querySelectorAll(".legend")) {
    const targets = ids(legend.dataset.charts).map((id) => charts.get(id));
    const buttons = [...legend.querySelectorAll("[data-style]")];
    const show = (button, shown) => {
      button.setAttribute("aria-pressed", String(shown));
      for (const chart of targets) {
        if (shown) chart.hidden.delete(button.dataset.style);
        else chart.hidden.add(button.dataset.style);
      }
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        show(button, button.getAttribute("aria-pressed") !== "true");
        targets.forEach(draw);
      });
    }
    for (const button of legend.querySelectorAll("[data-all]")) {
      button.addEventListener("click", () => {
        for (const other of buttons) show(other, button.dataset.all === "show");
        targets.forEach(draw);
      });
    }
  }

  for (const select of document.querySelectorAll("select[data-targets]")) {
    select.addEventListener("change", () => {
      const view = Number(select.value);
      for (const id of ids(select.dataset.targets)) {
        const chart = charts.get(id);
        if (chart) {
          chart.view = view;
          draw(chart);
        } else {
          const parts = document.getElementById(id).children;
          for (let i = 0; i < parts.length; i++) parts[i].hidden = i !== view;
        }
      }
    });
  }

  // Downloads.

  const cell = (value) => {
    let text = value === null || value === undefined ? "" : String(value);
    // A spreadsheet would evaluate it as a formula.
    if (typeof value === "string" && /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]/.test(text)) {
      text = `'${text}`;
    }
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  // Rows are objects; columns are in order of first appearance.
  function csv(rows) {
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const lines = rows.map((row) => columns.map((column) => cell(row[column])).join(","));
    return [columns.map(cell).join(","), ...lines, ""].join("\r\n");
  }

  const identity = (run) => ({
    id: run.id,
    placement: run.cell.placement,
    label: run.directory?.label,
    group: run.directory ? run.directory.set + 1 : undefined,
    init: run.cell.init,
    depth: run.cell.depth,
    lr: run.directory && run.directory.rates.length !== 1 ? undefined : run.cell.lr,
    seed: run.cell.seed,
  });

  const runs = (report) =>
    report.runs.map((run) => ({
      ...identity(run),
      ending: run.ending.kind,
      ending_step: run.ending.step,
      ending_reason: run.ending.reason,
      steps: run.steps,
      tokens: run.tokens,
      parameters: run.parameters,
      validation_loss: run.validation_loss,
      train_loss: run.train_loss,
      max_grad_norm: run.max_grad_norm,
      loss_spikes: run.spikes.loss,
      grad_norm_spikes: run.spikes.grad_norm,
      update_norm_spikes: run.spikes.update_norm,
      tokens_per_second: run.cost.tokens_per_second,
      seconds: run.cost.seconds,
      peak_memory_bytes: run.cost.peak_memory_bytes,
      machine: run.cost.machine,
      threads: run.cost.threads,
      version: run.cost.version,
      placement_hash: run.placement_hash,
      data: run.data,
    }));

  const segments = (report) =>
    report.runs.flatMap((run) =>
      (run.directory?.segments ?? []).map((segment, i, all) => ({
        ...identity(run),
        directory: run.directory.name,
        first_step: segment.after_step + 1,
        last_step: i + 1 < all.length ? all[i + 1].after_step : run.steps,
        changed: (segment.changed ?? [])
          .map(({ key, from, to }) => `${key}: ${from ?? "not set"} to ${to ?? "not set"}`)
          .join("; "),
        threads: segment.threads,
        machine: segment.machine,
        version: segment.version,
        data: segment.data,
        peak_memory_bytes: segment.peak_memory_bytes,
        started: segment.started,
      })),
    );

  const curves = (report) =>
    report.runs.flatMap((run) => [
      ...run.curve.step.map((step, i) => ({
        ...identity(run),
        step,
        ...Object.fromEntries(
          drawings.curves.map(({ column, path }) => {
            const series = run.curve[path] ?? run.curve.further?.[path];
            return [column, series?.[i]];
          }),
        ),
      })),
      ...run.validation.map(({ step, loss }) => ({ ...identity(run), step, validation_loss: loss })),
    ]);

  const roles = (signals) => {
    const columns = { gain_drift: signals.gain_drift };
    for (const kind of ["grad_norm", "update_ratio"]) {
      for (const [role, value] of Object.entries(signals[kind])) columns[`${kind}_${role}`] = value;
    }
    return columns;
  };

  const blocks = (row) => [
    ...row.blocks.map((block, i) => ({
      block: i + 1,
      ...Object.fromEntries(
        drawings.signals.map(({ column, path }) => [
          column,
          path.split(".").reduce((part, key) => part[key], block),
        ]),
      ),
      ...roles(block),
    })),
    { block: "outside", ...roles(row.ends) },
  ];

  const layers = (report) =>
    report.runs.flatMap((run) =>
      run.layers.flatMap((row) =>
        blocks(row).map((block) => ({ ...identity(run), step: row.step, ...block })),
      ),
    );

  const probe = (report) =>
    report.probe.placements.flatMap(({ placement, moments }) =>
      moments.flatMap((moment) =>
        blocks(moment.layers).map((block, i) => ({
          placement,
          step: moment.step,
          loss: moment.loss,
          stream_growth: moment.growth.stream,
          grad_growth: moment.growth.grad,
          grad_spread: moment.growth.grad_spread,
          ...block,
          stream_grad: moment.stream_grad[i],
        })),
      ),
    );

  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    document.getElementById("saved").textContent = `${name} was saved.`;
  }

  const tables = { runs, segments, curves, layers, probe };
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => {
      const kind = button.dataset.download;
      const name = document.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
      const file = name || "report";
      if (kind === "json") {
        save(`${file}.json`, "application/json", document.getElementById("document").textContent);
      } else {
        save(`${file}-${kind}.csv`, "text/csv", csv(tables[kind](read("document"))));
      }
    });
  }
})();
