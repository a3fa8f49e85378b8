// Sliders (ece/book/slider.py): show the drawing that belongs to the slider's place.
for (const box of document.querySelectorAll(".ece-slider")) {
  const labels = box.dataset.labels.split("|");
  const pictures = box.querySelectorAll("img");
  const label = box.querySelector("label");
  const range = label.querySelector("input");
  const show = () => {
    pictures.forEach((picture, place) => { picture.hidden = place !== Number(range.value); });
    label.querySelector("output").textContent = labels[range.value];
    range.setAttribute("aria-valuetext", labels[range.value]);
    box.querySelector(".ece-caption").textContent = pictures[range.value].alt;
  };
  range.addEventListener("input", show);
  label.hidden = false;
  show();
}

// What scrolls sideways can be reached by keyboard.
const reach = () => {
  for (const box of document.querySelectorAll(".bd-article table, .bd-article pre")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
};
new ResizeObserver(reach).observe(document.querySelector(".bd-article") || document.body);
window.addEventListener("load", reach);

// The parameters of a long signature are a list without terms.
for (const list of document.querySelectorAll(".sig dl")) {
  list.setAttribute("role", "list");
  for (const entry of list.children) entry.setAttribute("role", "listitem");
}

// Sphinx calls its list of sources a list, and its entries nothing.
for (const list of document.querySelectorAll(".citation-list")) {
  for (const entry of list.children) entry.setAttribute("role", "listitem");
}

// Folded cells in a row that show nothing become one fold, that of the last of them.
for (const cell of document.querySelectorAll(".cell.tag_hide-input")) {
  const next = cell.nextElementSibling;
  if (cell.querySelector(".cell_output") || !next?.matches(".cell.tag_hide-input")) continue;
  next.querySelector("details > summary").after(...cell.querySelectorAll(".cell_input"));
  cell.remove();
}

// The theme's arrows that open a branch of the contents have no name.
for (const arrow of document.querySelectorAll("summary:has(> .toctree-toggle)")) {
  arrow.setAttribute("aria-label", "Pages below this one");
}
