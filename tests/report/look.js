"use strict";
// Looks at reports in frames as a reader does: reads, chooses, sorts, points. What it finds stands in #found.

const short = (text) => text.trim().slice(0, 60);

function shown(element) {
  const box = element.getBoundingClientRect();
  return box.width > 1 && box.height > 1;
}

function scrolls(element, view) {
  for (let up = element; up; up = up.parentElement) {
    if (["auto", "scroll"].includes(view.getComputedStyle(up).overflowX)) return true;
  }
  return false;
}

// Texts that reach beyond the page, or beyond what an element that cuts off shows.
function cut(view) {
  const page = view.document;
  const faults = [];
  let texts = 0;
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(parent.tagName) || !shown(parent)) continue;
    texts += 1;
    const range = page.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!scrolls(parent, view) && (box.left < -0.5 || box.right > page.documentElement.clientWidth + 0.5)) {
      faults.push(`beyond the page: ${short(node.data)}`);
    }
    const cell = parent.closest("td, th, .card");
    if (cell && cell.getBoundingClientRect().right + 1 < box.right) faults.push(`beyond its cell: ${short(node.data)}`);
    for (let up = parent; up && up !== page.body; up = up.parentElement) {
      const clips = ["hidden", "clip"].includes(view.getComputedStyle(up).overflowX);
      const edge = up.getBoundingClientRect();
      if (clips && shown(up) && (box.right > edge.right + 1 || box.left < edge.left - 1)) {
        faults.push(`cut off: ${short(node.data)}`);
      }
    }
  }
  return [texts, faults];
}

// Words on the axes of plots that lie on each other.
function crowded(page) {
  const faults = [];
  for (const canvas of page.querySelectorAll(".canvas")) {
    for (const kind of [".tick.x", ".tick.y"]) {
      const boxes = [...canvas.querySelectorAll(kind)].filter(shown).map((tick) => tick.getBoundingClientRect());
      boxes.forEach((one, place) => boxes.slice(place + 1).forEach((other) => {
        const apart = one.right <= other.left || other.right <= one.left || one.bottom <= other.top || other.bottom <= one.top;
        if (!apart) faults.push(`${kind} on each other`);
      }));
    }
  }
  return faults;
}

function overflow(page) {
  const root = page.documentElement;
  return root.scrollWidth > root.clientWidth ? [`${root.scrollWidth} wide`] : [];
}

function choose(view) {
  const page = view.document;
  const faults = [];
  let choices = 0;
  for (const select of page.querySelectorAll("select[data-choose]")) {
    const [first, values] = [select.value, [...select.options].map((option) => option.value)];
    for (const value of [...values.slice(0, 3), values.at(-1), first]) {
      select.value = value;
      select.dispatchEvent(new view.Event("change"));
      choices += 1;
      const panels = [...page.querySelectorAll(`[data-panel="${select.dataset.choose}"]`)].filter((one) => !one.hidden);
      if (panels.length !== 1 || panels[0].dataset.place !== value) faults.push(`${select.dataset.choose}: no ${value}`);
      faults.push(...overflow(page), ...crowded(page));
    }
    if (!shown(select)) faults.push(`${select.dataset.choose} cannot be chosen`);
  }
  return [choices, faults];
}

function sort(view) {
  const page = view.document;
  const faults = [];
  const table = page.querySelector("table.sortable");
  const count = table.tBodies[0].rows.length;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    for (const [order, sign] of head.classList.contains("figures")
      ? [["descending", -1], ["ascending", 1]] : [["ascending", 1], ["descending", -1]]) {
      head.querySelector("button").click();
      const values = [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value);
      const known = values.filter((value) => value !== undefined);
      const falls = (one, other) => {
        const [a, b] = [Number(one), Number(other)];
        return sign * (Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b) > 0;
      };
      const sorted = known.every((value, place) => !place || !falls(known[place - 1], value));
      const last = values.slice(known.length).every((value) => value === undefined);
      if (!sorted || !last || values.length !== count || head.getAttribute("aria-sort") !== order) {
        faults.push(`${head.textContent} is not ${order}`);
      }
    }
  });
  if (page.querySelectorAll("[aria-sort]").length !== 1) faults.push("sorted by several columns");
  return faults;
}

function point(view) {
  const page = view.document;
  const faults = [];
  const tip = page.getElementById("tip");
  const marks = [...page.querySelectorAll("[data-tip]")].filter(shown).slice(0, 200);
  for (const mark of marks) {
    mark.dispatchEvent(new view.PointerEvent("pointerover", { bubbles: true }));
    const box = tip.getBoundingClientRect();
    if (tip.hidden || tip.textContent !== mark.dataset.tip) faults.push(`no tip: ${short(mark.dataset.tip)}`);
    if (box.left < 0 || box.right > page.documentElement.clientWidth) faults.push(`tip off: ${short(tip.textContent)}`);
  }
  faults.push(...overflow(page));
  page.body.dispatchEvent(new view.PointerEvent("pointerover", { bubbles: true }));
  if (!tip.hidden) faults.push("the tip stays");
  return [marks.length, faults];
}

window.addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const view = frame.contentWindow;
    const [texts, cuts] = cut(view);
    const broken = [...view.document.images].filter((one) => !one.naturalWidth).map((one) => `no picture: ${one.alt}`);
    const first = [...broken, ...overflow(view.document), ...crowded(view.document), ...cuts];
    const [tips, pointed] = point(view);
    const [choices, chosen] = choose(view);
    const faults = [...first, ...pointed, ...chosen, ...sort(view), ...cut(view)[1]];
    return { name: frame.dataset.name, width: view.innerWidth, texts, tips, choices, faults: [...new Set(faults)] };
  });
  document.querySelectorAll("iframe").forEach((frame) => frame.remove());
  document.getElementById("found").textContent = JSON.stringify(found);
});
