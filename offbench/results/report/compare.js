// The settings in which two entries differ on a task, with their scores there.

async function drawComparison() {
  const [a, b, task] = ["compare-a", "compare-b", "compare-task"].map((id) => Number($(id).value));
  const runs = await part("runs"), evidence = await part("evidence"), out = $("compare-out");
  const cells = [a, b].map((row) => runs.cells[cellIndex(row, task)]);
  const lacking = [a, b].filter((_, i) => !cells[i]).map((row) => E.entry[row]);
  if (lacking.length) {
    out.replaceChildren(el("p", { class: "empty" }, `${[...new Set(lacking)].join(" and ")} ${lacking.length > 1 ? "have" : "has"} no run on this task.`));
    return;
  }
  const [one, other] = cells.map((cell) => new Map(cell.settings[0].map((name, i) => [name, [cell.settings[1][i], cell.settings[2][i]]])));
  const names = [...new Set([...one.keys(), ...other.keys()])];
  const rows = names.map((name) => [name, ...[one, other].flatMap((side) => side.get(name) ?? ["--", ""])]);
  const differing = rows.filter((row) => row[1] !== row[3]), shown = $("compare-all").checked ? rows : differing;
  const score = (row) => DATA.cells.text[cellIndex(row, task)];
  const words = el("p", {}, el("strong", {}, E.entry[a]), ` ${score(a)}, `, el("strong", {}, E.entry[b]), ` ${score(b)}. ${pairWords(evidence, E.entry[a], E.entry[b])}`);
  const same = `${names.length - differing.length} of ${names.length} settings are the same.`;
  const table = shown.length ? listing("Settings of both entries", ["Setting", E.entry[a], "from", E.entry[b], "from"], shown, { wrap: [1, 2, 3, 4], free: true, rowClass: (row) => (row[1] !== row[3] && $("compare-all").checked ? "differs" : null) }) : null;
  out.replaceChildren(words, el("p", { class: "small" }, same), ...(table ? [table] : []));
}

// What the tests of all pairs say of these two over all tasks.
function pairWords(evidence, a, b) {
  if (a === b || !evidence.pairwise) return "";
  const pair = rowsOf(evidence.pairwise).find((r) => r.entry === a && r.rival === b);
  if (!pair) return "";
  const p = known(pair.p) ? `, p = ${pair.p.toPrecision(2)} adjusted for all pairs` : "";
  const gap = known(pair.difference) ? `the IQM differs by ${fixed(pair.difference)}${known(pair.low) ? ` [${fixed(pair.low)}, ${fixed(pair.high)}]` : ""}${p}; ` : "";
  return `Over all tasks ${gap}the first scores higher with probability ${fixed(pair.improvement, 2)}.`;
}

function startComparison() {
  const options = (names) => names.map((name, i) => el("option", { value: i }, name));
  $("compare-a").append(...options(E.entry));
  $("compare-b").append(...options(E.entry));
  $("compare-task").append(...options(DATA.names));
  $("compare-b").selectedIndex = Math.min(1, E.entry.length - 1);
  $("compare-form").addEventListener("submit", (event) => event.preventDefault());
  $("compare-form").addEventListener("change", drawComparison);
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    drawComparison();
  }, { rootMargin: "250px" });
  seen.observe($("compare"));
}
