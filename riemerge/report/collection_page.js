// A cell sorts by its data-v, a number of all digits, where it has one; cells without anything come last.
const keyOf = cell => cell.dataset.v ?? cell.textContent;
document.querySelectorAll("table.sorts th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  head.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numbers = !head.classList.contains("words");
  const keyed = [...body.rows].map(row => [keyOf(row.cells[column]), row]);
  keyed.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return (down ? -1 : 1) * (numbers ? a - b : a.localeCompare(b, "en", {numeric: true}));
  });
  body.append(...keyed.map(([, row]) => row));
}));
document.querySelectorAll("input.filter").forEach(input => input.addEventListener("input", () => {
  const text = input.value.toLowerCase();
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(text);
}));
