// From a score to its seeds, their episodes, the settings, and the command that makes the runs again.

const inflated = {};

// A compressed part of this page: its text, inflated once, when first asked for.
function inflate(name) {
  inflated[name] ??= (async () => {
    const bytes = Uint8Array.from(atob($(`part-${name}`).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  })();
  return inflated[name];
}

const parsed = {};
const part = (name) => (parsed[name] ??= inflate(name).then(JSON.parse));

// A table with a caption; numbers to the right, "wrap" columns may break.
function listing(caption, head, rows, options = {}) {
  const { numbers = [], wrap = [], free = false, kind: name = "", rowClass = () => null } = options;
  const kind = (x) => (numbers.includes(x) ? "num" : wrap.includes(x) ? "wrap" : null);
  const line = (row) => row.map((value, x) => {
    const name = x === 0 ? "th" : "td";
    return el(name, { class: kind(x), scope: x === 0 ? "row" : null }, value instanceof Node ? value : String(value ?? "--"));
  });
  const body = rows.map((row) => (row instanceof Node ? row : el("tr", { class: rowClass(row) }, ...line(row))));
  return el("div", { class: `listing ${free ? "free" : ""} ${name}`, tabindex: free ? null : 0, role: free ? null : "region", "aria-label": free ? null : caption },
    el("table", {}, el("caption", { class: "sr" }, caption),
      el("thead", {}, el("tr", {}, ...head.map((name, x) => el("th", { scope: "col", class: kind(x) }, name)))),
      el("tbody", {}, ...body)));
}

const ENDS = ["cut off", "terminated", "time limit", "terminated at the time limit"];

// Where the episodes of seed number s begin in the columns of a cell.
const offset = (cell, s) => cell.seeds.n.slice(0, s).reduce((a, b) => a + b, 0);

function dots(axis, scores, mean) {
  const x = (value) => (4 + 168 * (value - axis[0]) / (axis[1] - axis[0])).toFixed(1);
  const made = svg("svg", { class: "dots", viewBox: "0 0 176 16", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 176, y1: 8, y2: 8 }));
  for (const score of scores) made.append(svg("circle", { cx: x(score), cy: 8, r: 3.5 }));
  made.append(svg("line", { class: "mean", x1: x(mean), x2: x(mean), y1: 1, y2: 15 }));
  return made;
}

function episodeTable(cell, s, starts, seed) {
  const at = offset(cell, s), count = cell.seeds.n[s], e = cell.episodes;
  const start = (i) => (cell.starts ? cell.starts[at + i] : starts[i]);
  const rows = Array.from({ length: count }, (_, i) => [i, fixed(e.score[at + i]), e.return[at + i], e.length[at + i], ENDS[e.end[at + i]], start(i)]);
  return listing(`Episodes of seed ${seed}`, ["Episode", "Score", "Return", "Steps", "Ended by", "Start state (seed)"], rows, { numbers: [1, 2, 3, 5] });
}

function seedTable(cell, starts, axis) {
  const { seed, run_id, status, reason, score, n, seconds } = cell.seeds, rows = [], all = cell.episodes.score;
  axis = [Math.min(axis[0], ...all), Math.max(axis[1], ...all)];
  seed.forEach((number, s) => {
    const below = el("tr", { hidden: true, id: `episodes-${s}` }, el("td", { colspan: 6 }));
    const open = el("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": `episodes-${s}`, "aria-label": `${n[s]} episodes of seed ${number}`, onclick: () => {
      below.hidden = !below.hidden;
      open.setAttribute("aria-expanded", String(!below.hidden));
      if (!below.hidden && !below.cells[0].firstChild) below.cells[0].append(episodeTable(cell, s, starts, number));
    } }, `${n[s]} episodes`);
    const at = offset(cell, s), scores = all.slice(at, at + n[s]);
    const bad = status[s] === "ok" ? null : el("span", { class: "failed" }, status[s]);
    rows.push(el("tr", {},
      el("th", { scope: "row" }, `seed ${number}`),
      el("td", { class: "num" }, bad || fixed(score[s], 2)),
      el("td", {}, n[s] ? open : null),
      el("td", {}, known(score[s]) ? dots(axis, scores, score[s]) : null),
      el("td", { class: "num" }, fixed(seconds[s], 0)),
      el("td", {}, el("code", {}, run_id[s]))), below);
    if (reason[s]) rows.push(el("tr", {}, el("td", { colspan: 6, class: "wrap failed" }, reason[s])));
  });
  return listing("Seeds", ["Seed", "Score", "Open", "Scores of the episodes", "Seconds", "Run"], rows, { numbers: [1, 4], free: true, kind: "seeds" });
}

// The words of the command with the seeds chosen, quoted for a shell.
function commandWords(words, seeds) {
  const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);
  return words.map((word) => quote(word.startsWith("seeds=") ? `seeds=[${seeds.join(",")}]` : word));
}

function commandBlock(cell) {
  if (!cell.command) return [el("p", { class: "empty" }, "This policy was trained elsewhere; the record holds its evaluation alone.")];
  const all = cell.seeds.seed, text = el("code", {}), say = el("span", { "aria-live": "polite" });
  const choose = el("select", {}, el("option", { value: "" }, "all seeds"), ...all.map((seed) => el("option", { value: seed }, `seed ${seed}`)));
  const draw = () => {
    const words = commandWords(cell.command, choose.value === "" ? all : [choose.value]);
    text.replaceChildren(...words.flatMap((word, i) => (i ? [" ", el("span", {}, word)] : [el("span", {}, word)])));
  };
  choose.addEventListener("change", draw);
  draw();
  const copy = el("button", { type: "button", class: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      say.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(text);
      say.textContent = "selected; copy with the keyboard";
    }
  } }, "Copy");
  const own = cell.command.includes("task.data=PATH") ? el("p", { class: "small" }, "Where these data lay is not recorded; their checksum is. Put their path for PATH.") : null;
  return [el("pre", { class: "command", id: "command" }, text), el("div", { class: "tools" }, copy, el("label", {}, "for ", choose), say), own];
}

async function openCell(index, button) {
  const task = index % DATA.tasks.length, row = Math.floor(index / DATA.tasks.length);
  const dialog = $("cell"), body = $("cell-body");
  const value = spelt(DATA.cells.text[index]);
  body.replaceChildren(
    el("h2", { id: "cell-title" }, E.entry[row], el("span", {}, ` on ${DATA.tasks[task]}`)),
    el("p", { class: "big" }, ...value),
    el("p", { class: "small" }, "reading the records ..."));
  dialog.showModal();
  dialog.addEventListener("close", () => button.focus(), { once: true });
  const runs = await part("runs"), cell = runs.cells[index];
  body.lastChild.remove();
  if (!cell) {
    body.append(el("p", { class: "empty" }, "There is no record here."));
    return;
  }
  const apart = DATA.consistency && DATA.consistency.cells[index];
  const [names, values, sources] = cell.settings, scale = runs.scales[task];
  cell.episodes.score ??= cell.episodes.return.map((x) => scale[0] * x + scale[1]);
  body.append(
    el("section", {}, el("h3", {}, "Seeds and episodes"), seedTable(cell, runs.starts[task], TASKS[task].axis), apart && el("p", { class: "hint" }, `How far the policies of these seeds are apart: ${apart}`)),
    el("section", {}, el("h3", {}, "Run it again"), ...commandBlock(cell)),
    el("section", {}, el("h3", {}, "Settings"), listing("Settings and where their values come from", ["Setting", "Value", "From"], names.map((name, i) => [name, values[i], sources[i]]), { wrap: [1, 2], free: true })),
    el("section", {}, el("h3", {}, "How it was made"), listing("How these runs were made", ["", ""], cell.made, { wrap: [1], free: true })));
}

function startCell() {
  $("cell-close").addEventListener("click", () => $("cell").close());
  $("cell").addEventListener("click", (event) => { if (event.target === $("cell")) $("cell").close(); });
}
