// The page: its words, its colours, and the start of all parts.

function drawWords() {
  $("title").textContent = DATA.title || "Leaderboard";
  $("lede").textContent = DATA.lede;
  const pairs = (facts) => facts.flatMap(([name, words]) => [el("dt", {}, name), el("dd", {}, words)]);
  $("facts").replaceChildren(...pairs(DATA.facts));
  $("made").replaceChildren(...pairs(DATA.made));
  $("caption").textContent = DATA.caption;
  if (DATA.consistency) $("caption").after(el("p", {}, DATA.consistency.caption));
  const notes = DATA.notes.length ? DATA.notes : ["Nothing differs between the runs of a column, and nothing is missing."];
  $("notes-list").replaceChildren(...notes.map((note) => el("li", {}, note)));
  if (DATA.averaged) drawAveraged(DATA.averaged);
  if (DATA.goals) drawGoals(DATA.goals);
}

function drawAveraged(table) {
  const rows = table.entry.map((entry, i) => [entry, short(table.task[i]), fixed(table.mean[i]), fixed(table.low[i]), fixed(table.high[i]), fixed(table.last[i]), table.n_seeds[i]]);
  $("averaged").append(el("details", { class: "words" }, el("summary", {}, "Means of the last three evaluations"), el("p", {}, table.caption),
    listing("Means of the last three evaluations", ["Entry", "task", "mean of three", "low", "high", "last alone", "seeds"], rows, { numbers: [2, 3, 4, 5, 6] })));
}

function drawGoals({ head, lines, caption }) {
  const numbers = head.map((_, x) => x).slice(2), rows = lines.map(([entry, task, ...goals]) => [entry, short(task), ...goals]);
  $("averaged").append(el("details", { class: "words" }, el("summary", {}, "Success at each goal"), el("p", {}, caption),
    listing("Success at each goal", head, rows, { numbers })));
}

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  try { theme = localStorage.getItem("offbench-theme") || "auto"; } catch { /* a page from disk may have no storage */ }
  const apply = () => {
    document.documentElement.classList.toggle("dark", theme === "dark" || (theme === "auto" && system.matches));
    $("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
    $("theme").setAttribute("aria-label", `Colours: ${THEMES[theme]}. Press to change.`);
    for (const draw of drawn) draw();
  };
  $("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try { localStorage.setItem("offbench-theme", theme); } catch { /* then it lasts until the page is closed */ }
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

startTheme();
drawWords();
startTable();
startCell();
// what is below the table waits until the parts of the page after this script are read
addEventListener("DOMContentLoaded", () => { startCharts(); startComparison(); });
