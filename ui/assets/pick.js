// Rows and buttons carry data-pick, which arrives as `event.pick` of a click, or of their data-event; Enter and Space click.
// What is picked before the browser's draft is in the form waits for it: the draft would be put in over it.
const isOpening = () => document.getElementById('next-step-line')?.querySelector('.chosen') === null;
const pick = (id, kind = 'click') => isOpening() ? setTimeout(pick, 50, id, kind) : trigger(kind, {pick: id});
const send = (target) => {
  const row = target.closest('[data-pick]');
  row?.closest('[popover]')?.hidePopover();
  if (row && element.contains(row)) pick(row.dataset.pick, row.dataset.event);
};
element.addEventListener('click', (event) => { if (!event.target.closest('a')) send(event.target); });

// A table or a row of buttons is one tab stop, in which the arrow keys move: the chosen row, or where a person was last.
let last = '';
const LISTS = '[role=grid], [role=toolbar]';
const buttonsIn = (place) => [...place.querySelectorAll('button:not(:disabled)')];
const linesOf = (list) => {
  if (list.matches('[role=toolbar]')) return buttonsIn(list).map((button) => [button]);
  const rows = [...list.querySelectorAll('tr')].map((row) => [...(row.dataset.pick ? [row] : []), ...buttonsIn(row)]);
  return rows.filter((row) => row.length);
};
const isLast = (item) => item.dataset.pick === last;

const settle = () => {
  // Gradio keeps nodes by their position: where another row has come into this place, the focus follows its own.
  const held = document.activeElement;
  if (last && held.dataset.pick && !isLast(held) && element.contains(held)) [...element.querySelectorAll('[data-pick]')].find(isLast)?.focus();
  for (const list of element.querySelectorAll(LISTS)) {
    const items = linesOf(list).flat();
    const stop = items.find(isLast) ?? items.find((item) => item.ariaSelected === 'true') ?? items[0];
    for (const item of items) item.tabIndex = item === stop ? 0 : -1;
  }
  changes.takeRecords();
};
const changes = new MutationObserver(settle);
changes.observe(element, {childList: true, subtree: true, attributeFilter: ['data-pick', 'tabindex', 'aria-selected', 'disabled']});
element.addEventListener('focusin', (event) => { if (event.target.dataset.pick) { last = event.target.dataset.pick; settle(); } });
settle();

const moved = (lines, item, key, isRow) => {
  const line = lines.findIndex((one) => one.includes(item));
  const column = lines[line].indexOf(item);
  const across = {ArrowLeft: -1, ArrowRight: 1}[key] ?? 0;
  if (isRow && across) return lines[line][column + across];
  const to = {Home: 0, End: lines.length - 1, ArrowUp: line - 1, ArrowDown: line + 1}[key] ?? line + across;
  return lines[to] && lines[to][Math.min(column, lines[to].length - 1)];
};
element.addEventListener('keydown', (event) => {
  const item = event.target;
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === 'Enter' || event.key === ' ') {
    if (item.dataset.pick) { event.preventDefault(); send(item); }
    return;
  }
  const list = item.closest(LISTS);
  const lines = list && element.contains(list) ? linesOf(list) : [];
  if (!/^Arrow|^Home$|^End$/.test(event.key) || !lines.flat().includes(item)) return;
  event.preventDefault();
  moved(lines, item, event.key, list.matches('[role=grid]'))?.focus();
});
return pick;
