"use strict";
const root = document.documentElement, button = document.getElementById("theme");
function show(theme) {
  root.dataset.theme = theme;
  button.textContent = theme === "dark" ? "light" : "dark";
}
show(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
button.addEventListener("click", () => show(root.dataset.theme === "dark" ? "light" : "dark"));

// Sizes sort by their unit, figures by their first number, everything else as text.
const UNITS = { MiB: 1, GiB: 1024 };
function value(cell) {
  const found = cell.textContent.replace(/,/g, "").match(/^\s*(-?[\d.]+)\s*(MiB|GiB)?/);
  return found ? Number(found[1]) * (UNITS[found[2]] || 1) : cell.textContent;
}
for (const head of document.querySelectorAll(".sortable th")) {
  head.tabIndex = 0;
  const sort = () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a.cells[column]), y = value(b.cells[column]);
      return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    });
    body.append(...(down ? rows.reverse() : rows));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
