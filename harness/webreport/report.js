"use strict";
// The page is whole without this: it only lets a reader narrow the table of measures.
const tools = document.getElementById("tools");
const words = document.getElementById("words");
const which = document.getElementById("which");
const shown = document.getElementById("shown");
const groups = [...document.querySelectorAll("#measures tbody")];
function narrow() {
  const sought = words.value.trim().toLowerCase();
  let count = 0;
  for (const group of groups) {
    let left = 0;
    for (const row of group.querySelectorAll("tr[data-name]")) {
      const fits = row.dataset.name.toLowerCase().includes(sought) &&
        (which.value === "all" || row.dataset.standing.split(" ").includes(which.value));
      row.hidden = !fits;
      left += fits ? 1 : 0;
    }
    group.hidden = left === 0;
    count += left;
  }
  shown.textContent = count + " shown";
}
if (tools) {
  tools.hidden = false;
  words.addEventListener("input", narrow);
  which.addEventListener("change", narrow);
}
