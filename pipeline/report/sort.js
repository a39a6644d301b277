// Tables sort by the column whose head is pressed: numbers as numbers, else as text.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      const number = (value) => parseFloat(value.replaceAll(",", ""));
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [number(text(a)), number(text(b))];
        return isNaN(x) || isNaN(y) ? text(a).localeCompare(text(b)) : x - y;
      });
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
