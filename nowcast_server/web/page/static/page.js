"use strict";
// What the templates and htmx cannot do: the charts, the notice that the server is gone, the copy button.

(() => {
  const lost = document.getElementById("lost");

  // the stream of events is the pulse: it ends, the server is gone; it is back, so is the server
  document.addEventListener("htmx:sse:error", () => { lost.hidden = false; });
  document.addEventListener("htmx:sse:before:connection", (event) => {
    if (event.detail.connection.attempt > 1) lost.hidden = false;
  });
  document.addEventListener("htmx:sse:after:connection", () => { lost.hidden = true; });
  // before it has begun there is no stream to end
  document.addEventListener("htmx:error", () => { lost.hidden = false; });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const from = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(from.innerText);
      button.textContent = "Copied";
    } catch {  // only pages from localhost or by HTTPS may write to the clipboard
      getSelection().selectAllChildren(from);
      button.textContent = "Selected: press Ctrl+C";
    }
  });

  const live = document.getElementById("live");
  const lossChart = document.getElementById("chart-loss");
  if (!lossChart) return;

  // columns: step, seconds, loss, gain, coherence
  const columns = [[], [], [], [], []];
  let before = [[], [], [], [], []];  // of a server that was restarted since
  const pushChart = document.getElementById("chart-push");
  const across = document.getElementById("across");
  const log = document.getElementById("log");
  const sync = uPlot.sync("job");
  let charts = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const byTime = () => across.querySelector("input:checked").value === "1";
  const short = (value) => (value == null ? "–" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(2) : String(+value.toPrecision(4)));
  const duration = (s) => (s < 120 ? `${+s.toFixed(0)} s` : s < 7200 ? `${+(s / 60).toFixed(1)} min` : `${+(s / 3600).toFixed(1)} h`);

  // without a cursor the legend says what is newest
  const newest = (chart) => { if (chart.cursor.idx == null && chart.data[0].length) chart.setLegend({ idx: chart.data[0].length - 1 }, false); };

  function options(element, series, height, scales) {
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const label = byTime() ? (value) => duration(value) : (value) => value.toLocaleString("en");
    return {
      width: Math.max(280, element.clientWidth), height,
      cursor: { sync: { key: sync.key } },
      hooks: { ready: [newest], setLegend: [newest], setData: [newest] },
      scales: { x: { time: false }, ...scales },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map(label) },
        { ...axis, size: 70, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : short(tick))) },
      ],
      series: [{ label: byTime() ? "wall time" : "step", value: (_, value) => (value == null ? "–" : label(value)) }, ...series],
    };
  }

  const line = (label, name, extra = {}) => ({
    label, stroke: colour(name), width: 1.7, spanGaps: true, points: { show: false }, value: (_, value) => short(value), ...extra,
  });
  const data = () => {
    const x = columns[byTime() ? 1 : 0];
    return [[x, columns[2]], [x, columns[3], columns[4]]];
  };

  function build() {
    for (const chart of charts) chart.destroy();
    const [losses, pushes] = data();
    charts = [
      new uPlot(options(lossChart, [line("training loss", "--loss")], 300, { y: { distr: log.checked ? 3 : 1 } }), losses, lossChart),
      new uPlot(options(pushChart, [line("gain", "--gain"), line("coherence", "--coherence", { dash: [6, 3] })], 190,
        { y: { range: (_, low, high) => [Math.min(low ?? 0, 0), Math.max(high ?? 1, 1)] } }), pushes, pushChart),
    ];
    describe();
  }

  function describe() {
    const known = columns[2].map((loss, index) => [columns[0][index], loss]).filter(([, loss]) => loss != null);
    document.getElementById("no-points").hidden = columns[0].length > 0;
    if (!known.length) return;
    const [first, last] = [known[0], known.at(-1)];
    lossChart.setAttribute("aria-label",
      `Training loss: ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}`);
    const at = columns[0].length - 1;
    pushChart.setAttribute("aria-label", `Gain ${short(columns[3][at])} and coherence ${short(columns[4][at])} at step ${columns[0][at]}`);
    lossChart.dataset.points = columns[0].length;
  }

  live.addEventListener("course", (event) => {
    const rows = JSON.parse(event.detail.data);
    const [fresh, last] = [!columns[0].length, columns[0].at(-1)];
    if (rows.length) {
      // a server that was restarted knows the rest alone: what was seen before stays
      if (rows[0][0] > last) before = columns.map((column) => [...column]);
      else if (rows[0][0] <= before[0].at(-1)) before = columns.map(() => []);
      const shift = before[1].at(-1) ?? 0;
      columns.forEach((column, index) => {
        column.splice(0, Infinity, ...before[index], ...rows.map((row) => (index === 1 ? row[1] + shift : row[index])));
      });
    }
    const losses = columns[2].filter((loss) => loss != null);
    if (fresh && losses.length) log.checked = Math.min(...losses) > 0 && Math.max(...losses) > 50 * Math.min(...losses);
    if (fresh || !charts.length) return build();
    data().forEach((each, index) => charts[index].setData(each));
    describe();
  });

  across.addEventListener("change", build);
  log.addEventListener("change", build);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  let resizing;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(build, 100); });
  document.addEventListener("DOMContentLoaded", build);
})();
