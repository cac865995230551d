// Charts by plotly.js, which is inflated when the first of them comes into view. Each has its numbers as a table.

// Okabe and Ito's colours, told apart by everyone; on dark paper the darker ones are lifted
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const ON_DARK = ["#4AA3DF", "#E8743B", "#2BB98F", "#CC79A7", "#E69F00", "#F0E442"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star"];
const isDark = () => document.documentElement.classList.contains("dark");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A colour, dash and symbol of an entry: the same in all charts, by its place on the board.
function styleOf(entry) {
  const i = Math.max(0, E.entry.indexOf(entry));
  return { color: (isDark() ? ON_DARK : PALETTE)[i % 6], dash: DASHES[Math.floor(i / 6) % 4], symbol: SYMBOLS[(i + Math.floor(i / 6)) % 6] };
}
const faded = (hex) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},.16)`;

// A table of columns as one object per row.
const rowsOf = (table) => Object.values(table)[0].map((_, i) => Object.fromEntries(Object.entries(table).map(([key, column]) => [key, column[i]])));
const text = (x) => String(x).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);

function baseLayout(height) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--strong"), linecolor: css("--strong"), automargin: true, fixedrange: true };
  return {
    height, margin: { l: 10, r: 14, t: 10, b: 44 }, paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"),
    font: { family: css("--sans"), size: 13, color: css("--ink") }, hovermode: "closest",
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--strong"), font: { color: css("--ink") } },
    xaxis: { ...axis }, yaxis: { ...axis }, legend: { orientation: "h", x: 0, y: -0.18, yanchor: "top" },
  };
}

// Rows of many entries are lower, and their words smaller.
const rowHeight = (n, usual) => (n > 20 ? 17 : usual);
const smallWords = (n) => (n > 20 ? { tickfont: { size: 10 } } : {});

// Entries one below the other, each with a point and its interval.
function intervalChart(series, title) {
  const names = series[0].rows.map((r) => r.entry), height = Math.max(180, rowHeight(names.length, 30) * names.length + 80);
  const layout = baseLayout(height), shift = (k) => (series.length > 1 ? (k - (series.length - 1) / 2) * 0.3 : 0);
  layout.yaxis = { ...layout.yaxis, ...smallWords(names.length), tickvals: names.map((_, i) => i), ticktext: names.map(text), range: [names.length - 0.4, -0.6], showgrid: false, zeroline: false };
  layout.xaxis.title = { text: title, standoff: 8 };
  layout.showlegend = series.length > 1;
  layout.legend.y = -60 / height;
  const data = series.map((s, k) => ({
    type: "scatter", mode: "markers", name: s.name, x: s.rows.map((r) => r.point), y: s.rows.map((_, i) => i + shift(k)),
    error_x: { type: "data", symmetric: false, array: s.rows.map((r) => (known(r.high) ? r.high - r.point : 0)), arrayminus: s.rows.map((r) => (known(r.low) ? r.point - r.low : 0)), thickness: 2, width: 0, color: s.color },
    marker: { color: s.color, size: 9, symbol: s.symbol || "circle" },
    text: s.rows.map((r) => `${text(r.entry)}<br>${fixed(r.point, s.digits ?? 1)} [${fixed(r.low, s.digits ?? 1)}, ${fixed(r.high, s.digits ?? 1)}]`), hovertemplate: "%{text}<extra></extra>",
  }));
  return { data, layout };
}

// Lines with bands; beyond eight entries the later ones are shown by a click on their name.
function bandChart(groups, titles, options = {}) {
  const layout = baseLayout(options.height || 420), data = [];
  layout.xaxis.title = { text: titles[0], standoff: 8 };
  layout.yaxis.title = { text: titles[1], standoff: 8 };
  Object.assign(layout.yaxis, options.yaxis || {});
  groups.forEach(({ entry, x, y, low, high }, i) => {
    const { color, dash } = styleOf(entry), visible = i < 8 ? true : "legendonly";
    const has = x.map((_, j) => j).filter((j) => known(low[j]));
    if (has.length) {
      const edge = (bound) => ({ type: "scatter", mode: "lines", x: has.map((j) => x[j]), y: has.map((j) => bound[j]), line: { width: 0, color, shape: options.shape || "linear" }, hoverinfo: "skip", showlegend: false, legendgroup: entry, visible });
      data.push(edge(low), { ...edge(high), fill: "tonexty", fillcolor: faded(color) });
    }
    data.push({ type: "scatter", mode: "lines", name: text(entry), legendgroup: entry, visible, x, y,
      line: { color, dash, width: 2, shape: options.shape || "linear" }, hovertemplate: `${text(entry)}<br>%{x}: %{y:.3g}<extra></extra>` });
  });
  return { data, layout };
}

// One small chart per entry, of the first twenty, with its band, over the lines of all others in grey; axes are in common.
function panelChart(groups, titles, width) {
  const shown = groups.slice(0, 20), n = shown.length, across = Math.min(n, 4, Math.max(1, Math.floor(width / 165))), down = Math.ceil(n / across);
  const height = (n > 2 ? 190 : 340) * down + 60, layout = baseLayout(height), gap = [16 / width, 44 / height];
  const size = [(1 - gap[0] * (across - 1)) / across, (1 - gap[1] * (down - 1)) / down], data = [];
  const grey = { type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: css("--strong"), width: 1 }, x: groups.flatMap((g) => [...g.x, null]), y: groups.flatMap((g) => [...g.y, null]) };
  Object.assign(layout, { showlegend: false, annotations: [{ text: titles[0], font: { size: 15.5 }, x: 0.5, y: 0, yshift: -40, xref: "paper", yref: "paper", showarrow: false }] });
  layout.margin.t = 26;
  shown.forEach(({ entry, x, y, low, high }, i) => {
    const column = i % across, left = column * (size[0] + gap[0]), top = 1 - Math.floor(i / across) * (size[1] + gap[1]), id = i ? String(i + 1) : "";
    const { color } = styleOf(entry), on = { xaxis: `x${id}`, yaxis: `y${id}`, type: "scatter" }, shared = i ? { matches: "x" } : {};
    const has = x.map((_, j) => j).filter((j) => known(low[j])), edge = (bound) => ({ ...on, mode: "lines", x: has.map((j) => x[j]), y: has.map((j) => bound[j]), line: { width: 0, color }, hoverinfo: "skip" });
    const axis = baseLayout(height).xaxis;
    layout[`xaxis${id}`] = { ...axis, ...shared, domain: [left, left + size[0]], anchor: `y${id}`, showticklabels: i + across >= n, tickformat: "~s", nticks: 5 };
    layout[`yaxis${id}`] = { ...axis, ...(i ? { matches: "y" } : { title: { text: titles[1], standoff: 8 } }), domain: [top - size[1], top], anchor: `x${id}`, showticklabels: column === 0, nticks: 5 };
    layout.annotations.push({ text: text(entry), x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false });
    data.push({ ...grey, ...on }, edge(low), { ...edge(high), fill: "tonexty", fillcolor: faded(color).replace(".16", ".22") },
      { ...on, mode: "lines+markers", x, y, line: { color, width: 2 }, marker: { size: 6 }, hovertemplate: `${text(entry)}<br>%{x}: %{y:.3g}<extra></extra>` });
  });
  return { data, layout };
}

// On which side of its mark each name stands, so that names cover neither names nor marks, by a rough size.
function namePlaces(rows, width, height, logarithmic) {
  const scaled = (values, size) => { const low = Math.min(...values), high = Math.max(...values); return values.map((v) => (high > low ? 0.05 + 0.9 * (v - low) / (high - low) : 0.5) * size); };
  const x = scaled(rows.map((r) => (logarithmic ? Math.log(r.x) : r.x)).concat(logarithmic ? [] : [0]), width);
  const y = scaled(rows.flatMap((r) => [r.y, r.low ?? r.y, r.high ?? r.y]), height).filter((_, i) => i % 3 === 0);
  const taken = rows.map((_, i) => [x[i] - 6, x[i] + 6, y[i] - 6, y[i] + 6]);
  return rows.map((r, i) => {
    const wide = 7.5 * r.entry.length, box = (left, low) => [x[i] + left, x[i] + left + wide, y[i] + low, y[i] + low + 15];
    const places = { "middle right": box(8, -7), "middle left": box(-8 - wide, -7), "top center": box(-wide / 2, 8), "bottom center": box(-wide / 2, -23), "top left": box(-8 - wide, 8), "bottom left": box(-8 - wide, -23) };
    const free = ([a, b, c, d]) => a >= 0 && b <= width && taken.every(([e, f, g, h], j) => j === i || b < e || f < a || d < g || h < c);
    const place = Object.keys(places).find((name) => free(places[name])) ?? (x[i] > width / 2 ? "middle left" : "middle right");
    taken.push(places[place]);
    return place;
  });
}

function groupsOf(rows, x, y) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row.entry)) groups.set(row.entry, { entry: row.entry, x: [], y: [], low: [], high: [] });
    const group = groups.get(row.entry);
    group.x.push(row[x]); group.y.push(row[y]); group.low.push(row.low); group.high.push(row.high);
  }
  return [...groups.values()].sort((a, b) => E.entry.indexOf(a.entry) - E.entry.indexOf(b.entry));
}

const inOrder = (rows) => [...rows].sort((a, b) => E.entry.indexOf(a.entry) - E.entry.indexOf(b.entry) || DATA.tasks.indexOf(a.task) - DATA.tasks.indexOf(b.task));
const RETURNS = "Tasks here have returns of several scales, which have no mean: entries are ordered by their ranks.";
const FEW = "Fewer than two entries have every seed of every task, so there is nothing to compare.";
const ranked = () => E.entry.map((entry, r) => ({ entry, r })).filter(({ r }) => known(E.iqm[r]));

const CHARTS = {
  aggregates: {
    title: "IQM and mean over tasks",
    about: "Interquartile mean and mean over runs and tasks, each with its bootstrap interval over seeds and start states. Entries that lack a run have none.",
    empty: () => (RANKED ? RETURNS : ranked().length ? null : "No entry has every seed of every task, so there is no aggregate."),
    draw: () => {
      const of = (point, low, high) => ranked().map(({ entry, r }) => ({ entry, point: E[point][r], low: E[low][r], high: E[high][r] }));
      const blue = css("--bar"), grey = css("--faint");
      return intervalChart([{ name: "IQM", rows: of("iqm", "low", "high"), color: blue }, { name: "mean", rows: of("mean", "mean_low", "mean_high"), color: grey, symbol: "diamond-open" }], "score");
    },
    table: () => [["Entry", "IQM", "low", "high", "mean", "low", "high"], ranked().map(({ entry, r }) => [entry, ...["iqm", "low", "high", "mean", "mean_low", "mean_high"].map((name) => fixed(E[name][r]))])],
  },
  profiles: {
    title: "Performance profiles",
    about: "Share of runs whose score is above a threshold, tasks weighing equally, with pointwise bands. A curve above another everywhere is better for every threshold.",
    empty: (e) => (e.profiles?.entry.length ? null : RANKED ? RETURNS : FEW),
    draw: (e) => bandChart(groupsOf(rowsOf(e.profiles), "threshold", "point"), ["score threshold", "share of runs above"], { yaxis: { range: [-0.02, 1.02] }, shape: "hv", height: Math.max(380, 300 + 12 * E.entry.length) }),
    table: (e) => [["Entry", "threshold", "share", "low", "high"], rowsOf(e.profiles).map((r) => [r.entry, fixed(r.threshold), fixed(r.point, 3), fixed(r.low, 3), fixed(r.high, 3)])],
  },
  improvement: {
    title: "Probability of improvement",
    about: "That a run of the entry at the left scores higher than one of the entry above, mean over tasks; one half is a draw. The table has intervals, differences of the IQM, and p-values that are adjusted for all pairs.",
    empty: (e) => (e.pairwise?.entry.length ? null : FEW),
    draw: (e) => {
      const names = E.entry.filter((entry) => e.pairwise.entry.includes(entry)), n = names.length;
      const cells = new Map(rowsOf(e.pairwise).map((r) => [JSON.stringify([r.entry, r.rival]), r]));
      const z = names.map((a) => names.map((b) => cells.get(JSON.stringify([a, b]))?.improvement ?? null));
      const layout = baseLayout(Math.max(280, rowHeight(n, 34) * n + 150)), ids = names.map((_, i) => i);
      const ticks = { ...smallWords(n), tickvals: ids, ticktext: names.map(text), showgrid: false, zeroline: false };
      layout.xaxis = { ...layout.xaxis, ...ticks, side: "top", tickangle: n > 20 ? -90 : -40, range: [-0.5, n - 0.5] };
      layout.yaxis = { ...layout.yaxis, ...ticks, range: [n - 0.5, -0.5] };
      layout.margin.b = 10;
      const few = n <= 14, shown = z.map((row) => row.map((p) => (known(p) && few ? p.toFixed(2) : "")));
      const scale = isDark() ? [[0, "#b3541e"], [0.5, "#2a2d31"], [1, "#2f7fb5"]] : [[0, "#e08a4f"], [0.5, "#f6f4ee"], [1, "#5ba3d0"]];
      return { layout, data: [{ type: "heatmap", x: ids, y: ids, z, zmin: 0, zmax: 1, colorscale: scale, text: shown, texttemplate: "%{text}", textfont: { size: 12 }, xgap: n > 20 ? 0 : 2, ygap: n > 20 ? 0 : 2,
        colorbar: { thickness: 8, outlinewidth: 0, tickvals: [0, 0.5, 1], len: 0.9 },
        customdata: names.map((a) => names.map((b) => `${text(a)} over ${text(b)}`)), hovertemplate: "%{customdata}: %{z:.2f}<extra></extra>", hoverongaps: false }] };
    },
    table: (e) => [["Entry", "against", "P(improvement)", "low", "high", "IQM difference", "low", "high", "p", "tasks won", "lost", "neither"],
      inOrder(rowsOf(e.pairwise)).map((r) => [r.entry, r.rival, fixed(r.improvement, 2), fixed(r.improvement_low, 2), fixed(r.improvement_high, 2), fixed(r.difference), fixed(r.low), fixed(r.high), known(r.p) ? r.p.toPrecision(2) : "--", r.wins, r.losses, r.ties])],
  },
  ranks: {
    title: "Ranks",
    about: "Mean rank over tasks, 1 is the best, with its interval by resampling seeds and start states. Wide intervals say that the order is not known.",
    empty: (e) => (e.ranks?.entry.length ? null : FEW),
    draw: (e) => intervalChart([{ name: "mean rank", digits: 2, color: css("--bar"), rows: [...rowsOf(e.ranks)].sort((a, b) => a.mean_rank - b.mean_rank).map((r) => ({ ...r, point: r.mean_rank })) }], "mean rank"),
    table: (e) => [["Entry", "mean rank", "low", "high", "share of rivals beaten"], [...rowsOf(e.ranks)].sort((a, b) => a.mean_rank - b.mean_rank).map((r) => [r.entry, fixed(r.mean_rank, 2), fixed(r.low, 2), fixed(r.high, 2), fixed(r.borda, 2)])],
  },
  curves: {
    title: "Score during training",
    about: "Monitor episodes, which are other ones than the test episodes; the last point is the test. Each entry, of a long board the first twenty, with its band over seeds and start states, over all others in grey. Curves are looked at and never ranked.",
    choice: () => DATA.tasks,
    empty: (e) => (e.curves?.stream.includes("monitor") ? null : "No run here was evaluated during training. Ask for it with eval.monitor_at=[0.25,0.5,0.75]; it changes no score."),
    rows: (e, task) => rowsOf(e.curves).filter((r) => r.task === task),
    draw: (e, task, width) => panelChart(groupsOf(CHARTS.curves.rows(e, task), "update", "mean"), ["update", "score"], width),
    table: (e, task) => [["Entry", "update", "score", "low", "high", "seeds", "episodes", "stream"], inOrder(CHARTS.curves.rows(e, task)).map((r) => [r.entry, r.update, fixed(r.mean), fixed(r.low), fixed(r.high), r.n_seeds, r.n_episodes, r.stream])],
  },
  time: {
    title: "What a run costs",
    about: "Seconds of a run, training and evaluation, where runs that trained together share theirs. Other machines and loads take other times.",
    choice: () => [...(RANKED ? [] : ["all tasks (IQM)"]), ...DATA.tasks],
    empty: () => (E.wall_s.some(known) ? null : "No times are recorded."),
    rows: (task) => {
      const t = DATA.tasks.indexOf(task), at = (r) => cellIndex(r, t);
      const of = (r) => (t < 0 ? { x: E.wall_s[r], y: E.iqm[r], low: E.low[r], high: E.high[r] } : { x: DATA.cells.wall_s[at(r)], y: DATA.cells.mean[at(r)], low: DATA.cells.low[at(r)], high: DATA.cells.high[at(r)] });
      return E.entry.map((entry, r) => ({ entry, ...of(r) })).filter((r) => known(r.x) && known(r.y));
    },
    draw: (e, task, width) => {
      const rows = CHARTS.time.rows(task), layout = baseLayout(440), times = rows.map((r) => r.x), logarithmic = Math.max(...times) > 8 * Math.min(...times);
      Object.assign(layout.xaxis, { title: { text: "seconds per run", standoff: 8 }, type: logarithmic ? "log" : "linear", rangemode: "tozero" });
      layout.yaxis.title = { text: task.startsWith("all tasks") ? "IQM" : "score", standoff: 8 };
      layout.showlegend = false;
      const places = namePlaces(rows, width - 70, 370, logarithmic);
      return { layout, data: rows.map((r, i) => ({ type: "scatter", mode: rows.length > 15 ? "markers" : "markers+text", x: [r.x], y: [r.y], text: [text(r.entry)], textposition: places[i], cliponaxis: false,
        error_y: { type: "data", symmetric: false, array: [known(r.high) ? r.high - r.y : 0], arrayminus: [known(r.low) ? r.y - r.low : 0], thickness: 1, width: 0, color: faded(styleOf(r.entry).color).replace(".16", ".6") },
        marker: { size: 10, color: styleOf(r.entry).color, symbol: styleOf(r.entry).symbol }, hovertemplate: `${text(r.entry)}<br>%{x:.0f} s: %{y:.1f}<extra></extra>` })) };
    },
    table: (e, task) => [["Entry", "seconds per run", "score", "low", "high"], CHARTS.time.rows(task).map((r) => [r.entry, fixed(r.x, 0), fixed(r.y), fixed(r.low), fixed(r.high)])],
  },
  chunks: {
    title: "Executed chunk lengths",
    about: "How many steps of each planned chunk were executed before the policy was asked again, in the test episodes.",
    empty: (e) => (CHARTS.chunks.rows(e).length ? null : "No policy here executes chunks."),
    rows: (e) => (e.diagnostics ? inOrder(rowsOf(e.diagnostics).filter((r) => r.what === "executed")) : []),
    draw: (e) => {
      const rows = CHARTS.chunks.rows(e), bar = (r) => `${text(r.entry)}<br>${text(short(r.task))}`, bars = [...new Set(rows.map(bar))], lengths = [...new Set(rows.map((r) => r.length))].sort((a, b) => a - b);
      const layout = baseLayout(46 * bars.length + 150), shade = (i) => `hsl(202 ${55 + 20 * i / lengths.length}% ${78 - 50 * i / Math.max(1, lengths.length - 1)}%)`;
      Object.assign(layout, { barmode: "stack", bargap: 0.35 });
      layout.xaxis = { ...layout.xaxis, title: { text: "share of chunks", standoff: 8 }, range: [0, 1] };
      layout.yaxis.autorange = "reversed";
      layout.legend = { orientation: "h", x: 0, y: -90 / layout.height, yanchor: "top", traceorder: "normal", title: { text: "steps " } };
      return { layout, data: lengths.map((length, i) => ({ type: "bar", orientation: "h", name: String(length), y: bars, marker: { color: shade(i) },
        x: bars.map((name) => rows.find((r) => bar(r) === name && r.length === length)?.value ?? 0), hovertemplate: `%{y}<br>${length} steps: %{x:.2f}<extra></extra>` })) };
    },
    table: (e) => [["Entry", "task", "steps", "share", "chunks"], CHARTS.chunks.rows(e).map((r) => [r.entry, r.task, r.length, fixed(r.value, 3), r.n])],
  },
  values: {
    title: "Values against returns",
    about: "What the critics said of the first decision of each test episode, against the discounted return that followed, both in the units of the data. On the line they come true; hollow marks: some returns were cut short and could still have grown or shrunk.",
    choice: (e) => DATA.tasks.filter((task) => e.values.task.includes(task)),
    empty: (e) => (CHARTS.values.rows(e).length ? null : "No policy here values its decisions."),
    rows: (e) => (e.values ? inOrder(rowsOf(e.values)) : []),
    draw: (e, task) => {
      const rows = CHARTS.values.rows(e).filter((r) => r.task === task), all = rows.flatMap((r) => [r.value, r.return]), layout = baseLayout(400);
      layout.xaxis.title = { text: "mean value of the first decision", standoff: 8 };
      layout.yaxis.title = { text: "mean discounted return", standoff: 8 };
      const ends = [Math.min(...all), Math.max(...all)];
      const line = { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: css("--strong"), dash: "dot", width: 1.5 }, hoverinfo: "skip", showlegend: false };
      return { layout, data: [line, ...rows.map((r) => ({ type: "scatter", mode: "markers", name: text(r.entry), x: [r.value], y: [r.return], marker: { size: 11, color: styleOf(r.entry).color, symbol: styleOf(r.entry).symbol + (r.whole < 1 ? "-open" : ""), line: { width: 2, color: styleOf(r.entry).color } },
        hovertemplate: `${text(r.entry)}<br>value %{x:.3g}, return %{y:.3g}<extra></extra>` }))] };
    },
    table: (e, task) => [["Entry", "task", "mean value", "mean return", "whole returns", "episodes"], CHARTS.values.rows(e).filter((r) => r.task === task).map((r) => [r.entry, r.task, r.value.toPrecision(3), r.return.toPrecision(3), `${Math.round(100 * r.whole)} %`, r.n])],
  },
};
const short = (task) => DATA.names[DATA.tasks.indexOf(task)] ?? task;

let plotly;
function loadPlotly() {
  plotly ??= inflate("plotly").then((source) => {
    document.head.append(el("script", {}, source));
    return window.Plotly;
  });
  return plotly;
}

const drawn = [];

// Builds a chart's figure; its drawing, and the table of its numbers, wait until they are looked at.
async function startChart(place) {
  const chart = CHARTS[place.dataset.chart], evidence = await part("evidence"), missing = chart.empty(evidence);
  const caption = el("figcaption", {}, el("h3", {}, chart.title), el("p", {}, chart.about));
  if (missing) {
    place.replaceChildren(el("figure", {}, el("h3", {}, chart.title), el("p", { class: "empty" }, missing)));
    return;
  }
  const plot = el("div", { class: "plot", role: "img", "aria-label": `${chart.title}. ${chart.about} The same numbers are in the table below.` });
  const choices = chart.choice ? chart.choice(evidence) : null;
  const select = choices && el("select", { "aria-label": `${chart.title}: task` }, ...choices.map((name) => el("option", { value: name }, short(name))));
  const chosen = () => select?.value;
  const details = el("details", {}, el("summary", {}, "The numbers as a table"));
  const fill = () => {
    while (details.children.length > 1) details.lastChild.remove();
    const [head, rows] = chart.table(evidence, chosen());
    if (details.open) details.append(listing(chart.title, head, rows, { numbers: head.map((_, x) => x).filter((x) => x && rows.every((row) => /^(-?[\d.e-]+|--)$/.test(String(row[x])))) }));
  };
  details.addEventListener("toggle", fill);
  const draw = async () => {
    const Plotly = await loadPlotly(), { data, layout } = chart.draw(evidence, chosen(), plot.clientWidth);
    await Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
  };
  const save = (format) => el("button", { type: "button", class: "quiet", "aria-label": `Save ${chart.title} as ${format.toUpperCase()}`, onclick: async () => {
    (await loadPlotly()).downloadImage(plot, { format, filename: `${DATA.title}-${place.dataset.chart}`.replace(/[^\w.-]+/g, "-"), width: plot.clientWidth, height: plot.clientHeight, scale: format === "png" ? 3 : 1 });
  } }, `Save ${format.toUpperCase()}`);
  select?.addEventListener("change", () => { draw(); fill(); });
  place.replaceChildren(el("figure", {}, caption, select ? el("div", { class: "tools" }, el("label", {}, "Task ", select)) : null, plot, el("div", { class: "tools" }, save("svg"), save("png")), details));
  drawn.push(draw);
  await draw();
}

function startCharts() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      seen.unobserve(entry.target);
      startChart(entry.target);
    }
  }, { rootMargin: "250px" });
  for (const place of document.querySelectorAll(".chart")) seen.observe(place);
}
