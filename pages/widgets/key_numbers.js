// Draws the row of key numbers. Elements are kept between runs and only their text changes, so that focus stays.
const make = (tag, className, parent) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  parent.appendChild(element);
  return element;
};

export default function ({ data, parentElement, setTriggerValue }) {
  let row = parentElement.querySelector(".keys");
  if (!row) row = make("div", "keys", parentElement);
  row.style.setProperty("--count", data.numbers.length);
  while (row.children.length > data.numbers.length) row.lastChild.remove();
  data.numbers.forEach((number, index) => {
    let cell = row.children[index];
    if (!cell) {
      cell = make("button", "key", row);
      cell.type = "button";
      const name = make("span", "name", cell);
      make("i", "status", name);
      make("span", "label", name);
      make("i", "status measured mark", name);
      const big = make("span", "big", cell);
      make("span", "value", big);
      make("small", "", big);
      const delta = make("span", "delta", cell);
      make("span", "change", delta);
      make("span", "note", delta);
    }
    const put = (selector, text) => {
      const element = cell.querySelector(selector);
      if (element.textContent !== text) element.textContent = text;
    };
    cell.dataset.quantity = number.quantity;
    cell.disabled = !number.opens;
    const said = [number.exact || number.value, number.words, number.measured, number.opens && "click for its terms"];
    cell.title = said.filter(Boolean).join(" · ");
    const mark = cell.querySelector(".mark");
    mark.hidden = !number.measured;
    mark.title = number.measured;
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", number.measured);
    cell.querySelector(".status:not(.mark)").className = `status ${number.status}`;
    put(".label", number.label);
    put(".value", number.value);
    put("small", number.unit);
    put(".change", number.change);
    cell.querySelector(".change").className = `change ${number.direction}`;
    put(".note", number.note);
    cell.onclick = () => setTriggerValue("open", number.quantity);
  });
}
