"use strict";
const body = document.querySelector("#rows tbody");
const heads = [...document.querySelectorAll("#rows thead th")];
heads.forEach((head, column) => {
  const button = head.querySelector("button");
  button.disabled = false;
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.n ?? row.cells[column].textContent;
    const numbers = head.classList.contains("figure");
    const rows = [...body.rows].map((row) => [key(row), row]);
    const order = numbers
      ? (a, b) => (a === "") - (b === "") || (down ? b - a : a - b)
      : (a, b) => (down ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0);
    rows.sort((a, b) => order(a[0], b[0]));
    body.replaceChildren(...rows.map((pair) => pair[1]));
  });
});
