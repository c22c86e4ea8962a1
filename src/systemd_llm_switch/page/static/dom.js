// The page's elements: found by role, made from text, changed only where something differs.
// Text from elsewhere is only ever set as text, never as HTML.

export const role = (name) => document.querySelector(`[data-role="${name}"]`);

export const action = (name) => document.querySelector(`[data-action="${name}"]`);

/** A new element. Attributes that are null are left out; children are elements or text. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

/** A button that cannot be used now keeps the focus: it is not `disabled`. */
export function allow(button, isAllowed) {
  if (isAllowed) button.removeAttribute("aria-disabled");
  else button.setAttribute("aria-disabled", "true");
}

export const isAllowed = (button) => button.getAttribute("aria-disabled") !== "true";

/** Calls `run` for clicks while the button is allowed. */
export function onPress(button, run) {
  button.addEventListener("click", (event) => {
    event.preventDefault();
    if (isAllowed(button)) run();
  });
}

/** One element per item, in order: made once, updated when it stays, removed when it goes. */
export function keyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = known.get(key);
    known.delete(key);
    if (!node) {
      node = create(item);
      node.dataset.key = key;
    }
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    update(node, item);
  }
  for (const node of known.values()) node.remove();
}
