// The leaderboard: sorted, filtered, its columns chosen.

const DATA = JSON.parse(document.getElementById("data").textContent);
const E = DATA.entries;
const $ = (id) => document.getElementById(id);

// An element with text, attributes and children; text is never read as HTML.
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const fixed = (x, digits = 1) => (x === null || x === undefined ? "--" : x.toFixed(digits));
const cellIndex = (row, task) => row * DATA.tasks.length + task;
const known = (x) => x !== null && x !== undefined;

// The axis of a column: all its intervals, and 0 to 100 where scores are scaled.
function axisOf(lows, points, highs, scaled) {
  const all = [...lows, ...points, ...highs].filter(known);
  if (!all.length) return [0, 1];
  const low = Math.min(...all, scaled ? 0 : Infinity), high = Math.max(...all, scaled ? 10 : -Infinity);
  return high > low ? [low, high] : [low - 1, high + 1];
}

// An interval as a strip: a thin span, and a dot at the mean.
function strip(axis, low, point, high) {
  const x = (value) => (100 * (value - axis[0]) / (axis[1] - axis[0])).toFixed(2);
  const made = svg("svg", { class: "strip", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" });
  const line = (kind, a, b) => svg("line", { class: kind, x1: a, x2: b, y1: 5, y2: 5 });
  if (axis[0] <= 0 && axis[1] >= 0) made.append(svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 10 }));
  if (known(low)) made.append(line("span", x(low), x(high)));
  made.append(line("dot", x(point), x(point)));
  return made;
}

// "22.4 ± 8.7 (2 of 3 seeds)" as its value, interval and notes.
function spelt(text) {
  const [, value, interval, note] = text.match(/^(-?[\d.]+)( ± [\d.]+| \[[^\]]*\])?(.*)$/) || [null, text, "", ""];
  return [el("span", { class: "value" }, value), interval ? el("small", {}, interval) : null, note ? el("span", { class: "note" }, note.trim()) : null];
}

const TASKS = DATA.tasks.map((task, t) => ({
  key: `task-${t}`, name: DATA.names[t], title: task, task: t, shown: true, unit: unitOf(t),
  axis: columnAxis(t),
  value: (row) => DATA.cells.mean[cellIndex(row, t)],
}));

// What a column's numbers are, where they are no scores between references.
function unitOf(t) {
  if (DATA.unscaled[t]) return "return";
  return E.entry.some((_, row) => DATA.cells.success[cellIndex(row, t)]) ? "success, %" : null;
}

function columnAxis(t) {
  const rows = DATA.entries.entry.map((_, row) => cellIndex(row, t));
  const of = (name) => rows.map((i) => DATA.cells[name][i]);
  return axisOf(of("low"), of("mean"), of("high"), !DATA.unscaled[t]);
}

const RANKED = E.mean_rank.some(known);
const span = (a, b) => (a === b ? String(a) : `${a}-${b}`);
const COLUMNS = [
  RANKED
    ? { key: "iqm", name: "Mean rank", shown: true, aggregate: true, ascending: true, value: (r) => E.mean_rank[r] }
    : { key: "iqm", name: "IQM", title: "interquartile mean over runs and tasks", shown: true, aggregate: true, value: (r) => E.iqm[r] },
  { key: "mean", name: "Mean", shown: !RANKED && DATA.tasks.length > 1, value: (r) => E.mean[r], text: (r) => fixed(E.mean[r]) },
  ...TASKS,
  { key: "seeds", name: "Seeds", value: (r) => E.n_seeds[r], text: (r) => span(E.n_seeds[r], E.n_seeds_max[r]) },
  { key: "episodes", name: "Episodes", value: (r) => E.n_episodes[r], text: (r) => String(E.n_episodes[r]) },
  { key: "tuned", name: "Tuned per task", value: (r) => E.n_tuned[r], text: (r) => `${E.n_tuned[r]}/${E.n_tasks[r]}` },
  { key: "tuning", name: "Tuning", wide: true, value: (r) => E.tuning[r], text: (r) => E.tuning[r] || "--" },
  { key: "updates", name: "Updates", value: (r) => E.updates[r], text: (r) => E.updates[r] || "--" },
  { key: "seconds", name: "Seconds per run", ascending: true, shown: true, value: (r) => E.wall_s[r], text: (r) => fixed(E.wall_s[r], 0) },
  { key: "commit", name: "Commit", value: (r) => E.commit[r], text: (r) => E.commit[r] || "--" },
  ...(DATA.consistency ? [
    { key: "consistency", name: "Consistency", title: "how far the policies of an entry's seeds are apart; 0: one policy", ascending: true, shown: true, score: true, value: (r) => DATA.consistency.value[r], text: (r) => DATA.consistency.text[r] },
  ] : []),
];
const AGGREGATE_AXIS = RANKED ? null : axisOf(E.low, E.iqm, E.high, true);

const first = () => ({
  sort: null, descending: false, entry: "", task: "", published: false,
  shown: new Set(COLUMNS.filter((c) => c.shown).map((c) => c.key)),
});
let view = first();

const FIRST_ROWS = 16;

const contains = (text, words) => words.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
const shownColumns = () => COLUMNS.filter((c) => view.shown.has(c.key) && (c.task === undefined || contains(c.title, view.task)));

// Rows in the order of the board, or sorted; what has no value is last either way.
function shownRows() {
  const rows = E.entry.map((_, row) => row).filter((row) => contains(E.entry[row], view.entry));
  const column = view.sort === "entry" ? { value: (r) => E.entry[r] } : COLUMNS.find((c) => c.key === view.sort);
  if (!column) return rows;
  const compare = (a, b) => {
    const x = column.value(a), y = column.value(b);
    if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : a - b;
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (view.descending ? -order : order) || a - b;
  };
  return rows.sort(compare);
}

function headCell(key, name, title, ascending, unit) {
  const sorted = view.sort === key;
  const turn = () => {
    view.descending = sorted ? !view.descending : !ascending;
    view.sort = key;
    drawTable();
    document.querySelector(`#table thead [data-key="${key}"]`).focus();
  };
  const order = sorted ? (view.descending ? "descending" : "ascending") : null;
  return el("th", { scope: "col", "aria-sort": order }, el("button", { type: "button", "data-key": key, title: title || null, onclick: turn }, el("span", { class: "word" }, ...breakable(name)), unit && el("span", { class: "note" }, unit)));
}

// Long ids may break after "/", "-" and "_", and nowhere else.
const breakable = (name) => name.split(/(?<=[/_+(,-])/).flatMap((piece, i) => (i ? [el("wbr"), piece] : [piece]));

function taskCell(row, column) {
  const i = cellIndex(row, column.task), text = DATA.cells.text[i], mean = DATA.cells.mean[i];
  const best = DATA.cells.best[i] ? " best" : "";
  if (!known(mean) && DATA.cells.n_failed[i] + DATA.cells.n_diverged[i] === 0) {
    const why = DATA.cells.status[i] === "left out" ? "not asked for" : DATA.cells.status[i];
    return el("td", { class: "plain" }, "--", el("span", { class: "sr" }, ` ${why}`));
  }
  const words = `${E.entry[row]} on ${column.title}: ${text}${best ? ", not told from the best" : ""}`;
  const button = el("button", { type: "button", class: `score${best}`, "data-cell": i, tabindex: -1, "aria-label": words, "aria-haspopup": "dialog" }, ...spelt(text));
  if (known(mean)) button.append(strip(column.axis, DATA.cells.low[i], mean, DATA.cells.high[i]));
  return el("td", {}, button);
}

function aggregateCell(row) {
  const best = E.best[row] ? " best" : "", made = el("div", { class: `score${best}${known(E.rank[row]) ? "" : " incomplete"}` }, ...spelt(E.text[row]));
  if (known(E.iqm[row])) made.append(strip(AGGREGATE_AXIS, E.low[row], E.iqm[row], E.high[row]));
  return el("td", { class: known(E.iqm[row]) ? "" : "wide" }, made);
}

function drawRow(row, columns) {
  const [rank, possible] = E.rank_text[row].split(" ");
  const cells = columns.map((column) => {
    if (column.task !== undefined) return taskCell(row, column);
    if (column.aggregate) return aggregateCell(row);
    if (column.score) return el("td", {}, el("div", { class: "score" }, ...spelt(column.text(row))));
    return el("td", { class: column.wide ? "plain wide" : "plain" }, column.text(row));
  });
  return el("tr", { "data-entry": E.entry[row] }, el("th", { scope: "row" }, el("span", { class: "named" }, el("span", { class: "rank" }, rank), el("span", {}, ...breakable(E.entry[row]), possible && el("span", { class: "note" }, "rank ", possible.slice(1, -1))))), ...cells);
}

// What is published elsewhere: below the board, in another colour, in no statistic.
function publishedRows(columns) {
  $("published-words").hidden = $("published-sources").hidden = !view.published;
  if (!view.published) return [];
  return DATA.published.rows.filter((row) => contains(row.name, view.entry)).map((row) => {
    const name = el("span", { class: "named" }, el("span", { class: "rank" }, "·"), el("span", {}, ...breakable(row.name)));
    const cells = columns.map((column) => {
      const score = column.task === undefined ? null : row.scores[column.task];
      if (!score) return el("td", { class: "plain" }, "--");
      const std = known(score[1]) ? el("small", {}, ` ± ${fixed(score[1])}`) : null;
      return el("td", {}, el("div", { class: "score" }, el("span", { class: "value" }, fixed(score[0])), std));
    });
    return el("tr", { class: "published", title: row.about }, el("th", { scope: "row" }, name, el("span", { class: "sr" }, `, published: ${row.about}`)), ...cells);
  });
}

function drawTable(most = Infinity) {
  const columns = shownColumns(), rows = shownRows();
  const head = [headCell("entry", "Entry", "", true), ...columns.map((c) => headCell(c.key, c.name, c.title, c.ascending, c.unit))];
  const body = document.createDocumentFragment();
  for (const row of rows.slice(0, most)) body.append(drawRow(row, columns));
  body.append(...publishedRows(columns));
  $("table").tHead.replaceChildren(el("tr", {}, ...head));
  $("table").tBodies[0].replaceChildren(body);
  const score = $("table").querySelector("button.score");
  if (score) score.tabIndex = 0;
  const tasks = columns.filter((c) => c.task !== undefined).length;
  $("count").textContent = `${rows.length} of ${E.entry.length} entries, ${tasks} of ${TASKS.length} tasks`;
}

// Arrow keys move between scores; Tab leaves them.
function moveBetweenScores(event) {
  const from = event.target.closest("button.score");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!from || !step) return;
  const rows = [...$("table").tBodies[0].rows];
  let y = rows.indexOf(from.closest("tr")) + step[0], x = from.closest("td").cellIndex + step[1];
  for (; rows[y] && rows[y].cells[x]; y += step[0], x += step[1]) {
    const to = rows[y].cells[x].querySelector("button.score");
    if (!to) continue;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    break;
  }
  event.preventDefault();
}

function drawColumnsMenu() {
  const set = $("columns").querySelector("fieldset");
  const boxes = COLUMNS.map((column) => {
    const box = el("input", { type: "checkbox", onchange: () => {
      view.shown[box.checked ? "add" : "delete"](column.key);
      drawTable();
    } });
    box.checked = view.shown.has(column.key);
    return el("label", {}, box, column.title && column.task !== undefined ? column.title : column.name);
  });
  set.replaceChildren(set.querySelector("legend"), ...boxes);
}

function startTable() {
  for (const [id, key] of [["filter-entry", "entry"], ["filter-task", "task"]]) {
    $(id).addEventListener("input", () => { view[key] = $(id).value.trim(); drawTable(); });
  }
  $("published-label").hidden = !DATA.published;
  if (DATA.published) {
    $("published-sources").append(listing("Sources of the published scores", ["Row", "Source and protocol"], DATA.published.rows.map((row) => [row.name, row.about]), { wrap: [1] }));
  }
  $("published").addEventListener("change", () => { view.published = $("published").checked; drawTable(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => {
    view = first();
    $("published").checked = false;
    $("filter-entry").value = $("filter-task").value = "";
    drawColumnsMenu();
    drawTable();
  });
  $("columns").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { $("columns").open = false; $("columns").querySelector("summary").focus(); }
  });
  document.addEventListener("click", (event) => { if (!$("columns").contains(event.target)) $("columns").open = false; });
  $("table").addEventListener("keydown", moveBetweenScores);
  $("table").addEventListener("click", (event) => {
    const button = event.target.closest("button.score");
    if (button) openCell(Number(button.dataset.cell), button);
  });
  drawColumnsMenu();
  // a screenful is painted before the rest of a long board is drawn
  drawTable(FIRST_ROWS);
  if (E.entry.length > FIRST_ROWS) requestAnimationFrame(() => setTimeout(drawTable));
}
