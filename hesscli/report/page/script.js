
"use strict";
// Tables sort by the column whose head is pressed; without this script they are in the report's order.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  const key = (row, column) => {
    const cell = row.cells[column];
    return "order" in cell.dataset ? cell.dataset.order : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return a - b || (isNaN(a - b) ? a.localeCompare(b, undefined, { numeric: true }) : 0);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const falling = now === "ascending" || (now === null && head.classList.contains("number"));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What has no value stays at the end both ways.
      rows.sort(([a], [b]) => (falling && a !== "" && b !== "" ? -compare(a, b) : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
