"use strict";
document.documentElement.classList.add("js");

// Choices: one panel of a group is shown.
for (const select of document.querySelectorAll("select[data-choose]")) {
  const panels = document.querySelectorAll(`[data-panel="${select.dataset.choose}"]`);
  const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.place !== select.value; });
  select.addEventListener("change", show);
  show(); // a browser that goes back keeps what was chosen
}

// Tables: a click on a head sorts by its column, a second one the other way round; what is not known comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    if (text === undefined) return null;
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("figures") ? "descending" : "ascending";
    const second = first === "descending" ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([one], [other]) =>
      one === null || other === null ? (one === null) - (other === null) : sign * compare(one, other));
    body.append(...rows.map(([, row]) => row));
  }));
}

// Tips: what a point or bar says stands beside it, by mouse or finger.
const tip = document.getElementById("tip");
for (const marked of document.querySelectorAll(".dot[title], .bars[title], .small[title]")) {
  marked.dataset.tip = marked.title;
  marked.setAttribute("role", "img");
  marked.setAttribute("aria-label", marked.title);
  marked.removeAttribute("title"); // or the browser would show it, too
}
const hide = () => { tip.hidden = true; };
document.addEventListener("pointerover", (event) => {
  const marked = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  if (!marked) return hide();
  tip.textContent = marked.dataset.tip;
  tip.hidden = false;
  const box = marked.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = Math.max(8, Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, room));
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 8) + window.scrollY}px`;
  return undefined;
});
document.addEventListener("scroll", hide, { passive: true });
