// The editor of one row of a set: a box for each turn or column, and next to it the tokens as they are trained.
let [row, since, isDirty, isRaw, typed, tokensWait] = [null, 0, false, false, 0, 0];  // the row as it was opened, with what is typed
const [editor, fields, trained, save] = ['.row-editor', '.fields', '.trained', '.save'].map(find);
const ROLES = {role: ['system', 'user', 'assistant', 'tool'], from: ['system', 'human', 'gpt', 'function_call', 'observation']};

// Returns whether nothing typed would be lost.
const leaveRow = () => {
  if (isDirty) said.textContent = `Row ${row.row} has edits: save or discard them first.`;
  return !isDirty;
};
const isWrong = () => fields.querySelector('[aria-invalid=true]') !== null;
const drawTokens = async () => {
  if (!row || !set || editor.hidden || isWrong()) return;
  const mine = typed += 1, answer = await ofSet('tokens', {row: row.row, record: row.record});
  if (answer && mine === typed) trained.innerHTML = answer.html;
};
const changed = () => {
  clearTimeout(tokensWait);
  [isDirty, save.disabled, tokensWait] = [true, isWrong(), setTimeout(drawTokens, 60)];
};
const box = (name, value, put, after = changed) => {
  const isJson = typeof value !== 'string', problem = make('span', {className: 'no', hidden: true, textContent: 'This is not JSON.'});
  const area = make('textarea', {value: isJson ? JSON.stringify(value, null, 1) : value, spellcheck: !isJson});
  area.rows = Math.min(16, area.value.split('\n').length + Math.floor(area.value.length / 60) + 1);
  area.oninput = () => {
    problem.hidden = true;
    try { put(isJson ? JSON.parse(area.value) : area.value); } catch { problem.hidden = false; }
    area.ariaInvalid = String(!problem.hidden);
    after();
  };
  return make('div', {}, make('label', {}, isJson ? `${name} (JSON)` : name, area), problem);
};
const isTurns = (value) => Array.isArray(value) && value.length > 0 && value.every((turn) => turn && ('role' in Object(turn) || 'from' in Object(turn)));
const keysOf = (turn) => 'role' in turn ? ['role', 'content'] : ['from', 'value'];
const turnsOf = (name, turns) => {
  const act = (textContent, ariaLabel, disabled, does) => make('button', {type: 'button', className: 'link', textContent, ariaLabel, disabled, onclick: () => { does(); drawFields(); changed(); }});
  const nodes = turns.map((turn, at) => {
    const [key, text] = keysOf(turn), swap = (to) => () => { [turns[at], turns[to]] = [turns[to], turns[at]]; };
    const choice = make('select', {ariaLabel: `Role of turn ${at + 1}`}, ...[...new Set([...ROLES[key], turn[key]])].map((role) => new Option(role, role, false, role === turn[key])));
    choice.onchange = () => { turn[key] = choice.value; changed(); };
    const head = make('div', {className: 'line'}, choice, act('↑', `Move turn ${at + 1} up`, !at, swap(at - 1)), act('↓', `Move turn ${at + 1} down`, at === turns.length - 1, swap(at + 1)), act('Remove', `Remove turn ${at + 1}`, turns.length === 1, () => turns.splice(at, 1)));
    const parts = Object.keys(turn).filter((part) => part !== key);
    return make('div', {}, head, ...parts.map((part) => box(part === text ? `Turn ${at + 1}` : part, turn[part], (value) => { turn[part] = value; })));
  });
  const [key, text] = keysOf(turns.at(-1)), [, asks, answers] = ROLES[key];
  const more = act('Add a turn', 'Add a turn', false, () => turns.push({[key]: turns.at(-1)[key] === asks ? answers : asks, [text]: ''}));
  return make('fieldset', {}, make('legend', {textContent: name}), ...nodes, more);
};
const drawFields = () => {
  const {record} = row, columns = Object.entries(record);
  const whole = () => box('Row', record, (value) => { if (Object.prototype.toString.call(value) !== '[object Object]') throw new Error(); row.record = value; });
  const boxes = columns.map(([name, value]) => isTurns(value) ? turnsOf(name, value) : box(name, value, (text) => { record[name] = text; }));
  fields.replaceChildren(...(isRaw || !boxes.length ? [whole()] : boxes));
  find('[data-pick=raw]').ariaPressed = String(isRaw);
};
const openRow = async (position) => {
  if (!shown.has(position) || !leaveRow()) return;
  const answer = await ofSet('row', {row: shown.get(position).row});
  if (!answer) return;
  [row, since, said.textContent] = [{...answer, position}, answer.last, answer.problem];
  [editor.hidden, save.disabled, trained.innerHTML, find('.row-editor h3').textContent] = [false, true, '', `Row ${figure(row.row)}`];
  drawFields();
  return drawTokens();
};
Object.assign(VERBS, {
  save: async () => {
    const before = JSON.stringify(row.record), mine = row;
    if (!await apply([{kind: 'edit', row: row.row, record: row.record}], `Saved row ${row.row}`, since) || mine !== row) return;
    since = set.last;
    isDirty = !(save.disabled = before === JSON.stringify(row.record));
  },
  discard: () => { isDirty = false; return openRow(row.position); },
  turn: async (step) => {
    if (leaveRow()) { move(row.position + Number(step)); await drawRows(); return openRow(cursor); }
  },
  raw: () => { isRaw = !isRaw; drawFields(); },
});
editor.onkeydown = ({key, ctrlKey, metaKey, altKey}) => {
  const verb = (ctrlKey || metaKey) && key === 'Enter' && !save.disabled ? 'save' : altKey && {PageUp: 'turn:-1', PageDown: 'turn:1'}[key];
  if (verb) trigger('click', {pick: verb});
};
