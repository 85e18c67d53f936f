// The sets of a person: their list, and the rows of the open one in a grid of which only the rows in sight exist.
// Elements with data-pick act here, by the verb before the colon; only a set that the draft is to use goes to the page.
const find = (name) => element.querySelector(name);
const [list, said, open, grid, lines, log, form, hits] = ['.list', '.said', '.set', '.grid', '.rows', '.log', 'form', '.hits'].map(find);
const [HEIGHT, MOST, MARGIN] = [36, 8e6, 12];  // pixels of a row and of the grid's content, and rows above and below
const STATES = ['excluded', 'held out', 'flagged', 'edited'];
let [set, sort, cursor, anchor, round, known, wait] = [null, 'row', 0, 0, 0, '', 0];
const [selected, shown] = [new Set(), new Map()];  // numbers of rows; rows by their position
const figure = (number) => number.toLocaleString('en');

const make = (tag, facts = {}, ...parts) => { const node = Object.assign(document.createElement(tag), facts); node.append(...parts); return node; };
const ask = async (question, place = said) => {
  let answer = {error: 'The server cannot be reached. Try again.'};
  try { answer = JSON.parse(await server.query([JSON.stringify({...question, form: JSON.parse(props.value)}), ''])); } catch { /* shown below */ }
  if (answer.error) place.innerHTML = answer.error;
  return answer.error ? null : answer;
};
const ofSet = (verb, more = {}) => ask({do: verb, name: set.name, version: set.version, ...more});
const view = () => {
  const [state, check = ''] = find('.state').value.split('check:');
  return {text: find('.find').value, state, check, sort};
};

const lineOf = (row, position, top) => {
  const states = STATES.filter((_, bit) => row.state >> bit & 1).join(', ') || 'kept';
  const parts = row.parts.flatMap(([name, text]) => [make('b', {textContent: name}), ` ${text} `]);
  const score = row.score == null ? '–' : row.score.toFixed(2);
  const cells = [[figure(row.row)], [states], parts, [figure(row.characters)], [score]].map((cell) => make('span', {role: 'gridcell'}, ...cell));
  cells[4].className = 'score';
  const line = make('div', {role: 'row', id: `set-row-${position}`, className: `line-row${row.state & 1 ? ' excluded' : ''}`, ariaRowIndex: position + 2}, ...cells);
  line.style.top = `${top}px`;
  line.dataset.at = position;
  return line;
};
const mark = () => {
  for (const line of lines.children) {
    line.ariaSelected = String(selected.has(shown.get(Number(line.dataset.at)).row));
    line.classList.toggle('cursor', Number(line.dataset.at) === cursor);
  }
  grid.setAttribute('aria-activedescendant', `set-row-${cursor}`);
  find('.count').textContent = `${figure(set.count)} of ${figure(set.total)} rows${selected.size ? `, ${figure(selected.size)} selected` : ''}`;
};
// Beyond MOST the scroll bar moves through the rows in proportion.
const isScaled = () => set.count * HEIGHT > MOST;
const inSight = () => Math.max(1, Math.floor((grid.clientHeight - HEIGHT) / HEIGHT));
const scale = () => (lines.offsetHeight - grid.clientHeight + HEIGHT) / (set.count - inSight());
const firstRow = () => Math.max(0, Math.min(Math.floor(grid.scrollTop / (isScaled() ? scale() : HEIGHT)), set.count - 1));
// One question at a time: rows that were scrolled past are never asked for.
const drawRows = async () => {
  if (!set || round) { round &&= 2; return; }
  round = 1;
  const mine = set, first = Math.max(0, firstRow() - MARGIN), answer = await ofSet('rows', {...view(), first, count: inSight() + 2 * MARGIN});
  const isOld = round > 1 || set !== mine;
  round = 0;
  if (answer && set === mine) {
    Object.assign(set, {count: answer.count, last: Math.max(set.last, answer.last), total: answer.rows_in_set, columns: answer.columns});
    lines.style.height = `${Math.min(set.count * HEIGHT, MOST)}px`;
    const topOf = (position) => isScaled() ? grid.scrollTop + (position - firstRow()) * HEIGHT : position * HEIGHT;
    grid.classList.toggle('scored', answer.has_scores);
    shown.clear();
    answer.rows.forEach((row, index) => shown.set(first + index, row));
    lines.replaceChildren(...answer.rows.map((row, index) => lineOf(row, first + index, topOf(first + index))));
    grid.ariaRowCount = set.count + 1;
    cursor = Math.max(0, Math.min(cursor, set.count - 1));
    mark();
  }
  if (isOld) return drawRows();
};
const drawFromTop = () => { grid.scrollTop = cursor = anchor = 0; return drawRows(); };
const sortBy = (key) => {
  sort = key;
  for (const head of grid.querySelectorAll('[data-pick]')) head.parentElement.ariaSort = {[key]: 'ascending', [key.slice(1)]: 'descending'}[head.dataset.pick.slice(5)] ?? 'none';
};
const openSet = async (name) => {
  if (!leaveRow()) return;
  set = {name, version: '', count: 0, total: 0, last: 0, columns: []};
  [from.value, to.value, differences.textContent, find('.earlier').hidden] = ['', '', '', true];
  open.classList.remove('read-only');
  find('.find').value = find('.state').value = '';
  forgetChecks();
  sortBy('row');
  selected.clear();
  [find('.set h3').textContent, editor.hidden, open.hidden, said.textContent] = [name, true, false, 'Reading rows …'];
  await drawFromTop();
  if (said.textContent === 'Reading rows …') said.textContent = '';
  form.column.replaceChildren(new Option('all columns', ''), ...set.columns.map((column) => new Option(column)));
  drawLog();
  drawChecks();
  if (!open.contains(document.activeElement)) grid.focus();
};
const closeSet = () => { [set, open.hidden, isDirty] = [null, true, false]; };
const apply = async (operations, done, since = set.last, more = {}) => {
  if (set.version) { said.textContent = 'An earlier version stays as it is. Show the newest to change rows.'; return false; }
  const answer = await ofSet('apply', {operations, since, ...more});
  if (!answer) return false;
  [set.last, said.textContent] = [answer.last, `${done}. Version ${answer.version}`];
  if (JSON.parse(props.value).dataset.source === `set:${set.name}`) toPage('submit');
  await Promise.all([drawRows(), drawLog(), drawList(false)]);
  return true;
};
// Returns ascending ranges, such as 1-40,77.
const rangesOf = (numbers) => {
  const ranges = [];
  for (const number of [...numbers].sort((left, right) => left - right)) {
    if (ranges.at(-1)?.[1] === number - 1) ranges.at(-1)[1] = number; else ranges.push([number, number]);
  }
  return ranges.map((range) => [...new Set(range)].join('-')).join(',');
};
const DONE = {exclude: 'Excluded', include: 'Included', split: 'Held out', flag: 'Flagged'};
const markRows = (kind) => {
  const isInEditor = editor.contains(document.activeElement);
  const first = isInEditor ? [...shown.values()].find((line) => line.row === row.row) ?? row : shown.get(cursor);
  const rows = !isInEditor && selected.size ? [...selected] : first ? [first.row] : [];
  const text = kind === 'flag' && !(first?.state & 4) ? 'flagged' : '';  // a flag without text is none
  if (rows.length) return apply([{kind, rows: rangesOf(rows), text}], `${kind === 'flag' && !text ? 'Unflagged' : DONE[kind]} ${figure(rows.length)} ${rows.length === 1 ? 'row' : 'rows'}`);
};
const select = (numbers) => { selected.clear(); numbers.forEach((number) => selected.add(number)); mark(); };
const selectRange = async (from, to) => {
  const answer = await ofSet('numbers', {...view(), first: Math.min(from, to), count: Math.abs(to - from) + 1});
  select(answer?.numbers ?? []);
};
const move = (to, isExtended = false) => {
  cursor = Math.max(0, Math.min(to, set.count - 1));
  if (isExtended) selectRange(anchor, cursor); else anchor = cursor;
  const from = firstRow(), step = isScaled() ? scale() : HEIGHT;
  if (cursor < from + 1) grid.scrollTop = cursor * step;
  if (cursor >= from + inSight()) grid.scrollTop = (cursor - inSight() + 1) * step;
  mark();
};
const toggle = (line) => { if (line && !selected.delete(line.row)) selected.add(line.row); mark(); };
grid.onscroll = drawRows;
grid.onkeydown = (event) => {
  if (event.target !== grid || event.altKey) return;
  const isCommand = event.ctrlKey || event.metaKey, verb = {e: 'exclude', i: 'include', f: 'flag', h: 'split'}[event.key.toLowerCase()];
  const step = {ArrowDown: 1, ArrowUp: -1, PageDown: inSight(), PageUp: -inSight(), Home: -Infinity, End: Infinity}[event.key];
  if (step) move(cursor + step, event.shiftKey);
  else if (event.key === 'a' && isCommand) selectRange(0, set.count - 1);
  else if (event.key === ' ') toggle(shown.get(cursor));
  else if (event.key === 'Enter') openRow(cursor);
  else if (event.key === 'Escape') select([]);
  else if (verb && !isCommand) markRows(verb);
  else return;
  event.preventDefault();
};
lines.onclick = (event) => {
  const line = event.target.closest('[data-at]'), position = Number(line?.dataset.at ?? cursor);
  if (event.shiftKey) return move(position, true);
  move(position);
  if (event.ctrlKey || event.metaKey || event.target === line?.firstChild) return toggle(shown.get(position));
  select([]);
  openRow(position);
};

const replacement = () => ({kind: 'replace', pattern: form.pattern.value, replacement: form.replacement.value, is_regex: form.regex.checked, columns: [form.column.value].filter(Boolean)});
const VERBS = {
  make: async () => {
    said.textContent = 'Copying and reading rows …';
    const answer = await ask({do: 'make'});
    if (answer) { toPage('click', {pick: `set:${answer.name}`}); await drawList(false); return openSet(answer.name); }
  },
  open: openSet,
  close: () => { if (leaveRow()) { if (isChecking) VERBS['stop-checks'](); closeSet(); } },
  sort: (by) => { sortBy(sort === by ? `-${by}` : by); return drawFromTop(); },
  replace: async () => { if (await apply([replacement()], 'Replaced')) [hits.textContent, find('[data-pick=replace]').disabled] = ['', true]; },
};
for (const kind of Object.keys(DONE)) VERBS[kind] = () => markRows(kind);
const toPage = trigger;
trigger = (kind, detail) => {
  const [verb, ...rest] = detail.pick.split(':');
  if (verb in VERBS) VERBS[verb](rest.join(':')); else toPage(kind, detail);
};
find('.find').oninput = find('.state').onchange = () => { clearTimeout(wait); wait = setTimeout(drawFromTop, 150); };
form.onsubmit = (event) => { event.preventDefault(); VERBS.preview(); };
form.oninput = () => { find('[data-pick=replace]').disabled = true; };
new IntersectionObserver(() => drawList()).observe(element);
new ResizeObserver(drawRows).observe(grid);
watch('value', () => { drawList(); drawTokens(); });
