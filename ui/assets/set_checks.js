// The row checks of the open set: what they found, with buttons that show these rows or change them in one operation.
const [checks, progress, found, states] = ['.checks', '.progress-line', '.found', '.state'].map(find);
const REMEDIES = {
  exclude: ['Exclude all', 'Excluded', 'Leaves these rows out'],
  best: ['Keep the best', 'Excluded', 'Of the rows that belong together, the one with the longest answer stays'],
  hold_out: ['Hold out', 'Held out', 'Holds out the training rows that are similar to a held-out row'],
  mask: ['Mask', 'Masked', 'Replaces what was found, such as by [mail]'],
};
let [poll, isChecking] = [0, false];

// Fields of the settings, by name; those of a person who typed stay as they are until the set is closed.
const limits = new Map();
const valueOf = ({default: value, examples}) => String(value ?? examples?.[0] ?? '');
const makeField = (name, facts) => {
  const {title, description, enum: choices, type, minimum = '', maximum = '', pattern, maxLength = 0} = {...facts, ...facts.anyOf?.[0]};
  const isNumber = ['number', 'integer'].includes(type), tag = choices ? 'select' : maxLength > 1000 ? 'textarea' : 'input';
  const field = make(tag, {name, title: description, ...(maxLength && {maxLength}), ...(isNumber && {type: 'number', min: minimum, max: maximum, step: type === 'integer' ? 1 : 0.01}), ...(pattern && {pattern})});
  if (choices) field.append(...choices.map((choice) => new Option(choice)));
  if (tag === 'textarea') [field.rows, field.spellcheck] = [8, false];
  field.setAttribute('aria-describedby', `check-${name}`);
  limits.set(name, {field, start: valueOf(facts)});
  return make('div', {}, make('label', {}, `${title} `, field), make('div', {id: `check-${name}`, className: 'small', textContent: description}));
};
const fill = (settings) => limits.forEach(({field, start}, name) => { if (!field.dataset.typed) field.value = settings[name] ?? start; });
const drawSettings = (all) => {
  for (const place of limits.size ? [] : checks.querySelectorAll('[data-fields]')) place.append(...place.dataset.fields.split(' ').map((name) => makeField(name, all[name])));
};
// Shows the first field with a value that its bounds exclude, as the browser words it.
const isValid = () => {
  const wrong = [...limits.values()].find(({field}) => !field.checkValidity())?.field;
  if (wrong) wrong.closest('details').open = true;
  return wrong?.reportValidity() ?? true;
};

// Cards of scorers, those of the last check at first; a card that was not sent is in no draft.
const scorers = find('.scorers');
const drawScorers = async (values) => {
  const answer = await ask({do: 'scorers', scorers: values}, progress);
  if (answer) scorers.innerHTML = answer.html;
};
scorers.onchange = ({target}) => { if (target.matches('.add') && target.value) drawScorers([...cards(), {scorer: target.value}]); };
scorers.onclick = ({target}) => { if (target.matches('.remove')) target.closest('[data-scorer]').remove(); };

const exampleOf = ({row, why, sample, other}) => make('div', {}, make('b', {textContent: `Row ${figure(row + 1)} `}), why, ...[sample, other].flatMap(under));
const lineOfCheck = ({name, finds, rows, kinds, examples, below, counts}) => {
  const kind = Object.entries(kinds).map(([key, count]) => `${figure(count)} ${key}`).join(', ');
  const next = below.length ? [make('div', {className: 'count', textContent: 'Below the similarity, not found:'}), ...below.map(exampleOf)] : [];
  const remedies = ['exclude', 'held_out' in kinds ? 'hold_out' : 'best', 'mask'].filter((one) => counts[one]).map((one) => act(`remedy:${one}:${name}`, `${REMEDIES[one][0]} (${figure(counts[one])})`, name, REMEDIES[one][2]));
  return [[[make('b', {textContent: name}), ...under(finds)], [figure(rows), ...under(kind)], [...examples.map(exampleOf), ...next], rows ? [act(`show:${name}`, 'Show', name), ...remedies] : '–']];
};
const drawFound = ({settings, source, version, checks: all = []}) => {
  fill(settings);
  const [chosen, last] = [states.value, document.activeElement?.dataset.pick];
  states.querySelector('optgroup')?.remove();
  const filled = all.filter((check) => check.rows);
  if (filled.length) states.append(make('optgroup', {label: 'found by a check'}, ...filled.map(({name}) => new Option(name, `check:${name}`))));
  states.value = chosen;
  find('.reports').hidden = !all.length;
  const table = tableOf(['Check', '#Rows', 'Examples', 'Actions'], all.map(lineOfCheck));
  const isOld = all.length && source.split('@')[1] !== version;
  found.replaceChildren(...(isOld ? [make('p', {className: 'small', textContent: `Version ${source.split('@')[1]} was checked; the set has changed since. Rows that were excluded or edited are left alone.`})] : []), ...(all.length ? [table] : []));
  if (last) found.querySelector(`[data-pick="${CSS.escape(last)}"]`)?.focus();
};
// Follows the checks until they end; an answer that a later question has overtaken is dropped.
const drawChecks = async (more = {}) => {
  if (!checks.open || !set) return;
  const mine = poll += 1, answer = await ask({do: 'check', name: set.name, ...more}, progress);
  if (!answer || mine !== poll || !set) return;
  if (progress.innerHTML !== answer.html) progress.innerHTML = answer.html;
  isChecking = answer.is_running;
  drawSettings(answer.fields);
  if (!scorers.firstChild && !answer.is_running) drawScorers(answer.scorers.length ? answer.scorers : JSON.parse(props.value).dataset.scorers ?? []);
  [find('[data-pick=check]').disabled, find('[data-pick=stop-checks]').hidden] = [isChecking, !isChecking];
  if (isChecking) setTimeout(() => { if (mine === poll) drawChecks(); }, 500); else { drawFound(answer); if (answer.scorers.length) drawRows(); }
};
const forgetChecks = () => {
  [isChecking, progress.textContent, scorers.textContent] = [false, '', ''];
  poll += 1;
  for (const {field} of limits.values()) delete field.dataset.typed;
  drawFound({settings: {}});
};
Object.assign(VERBS, {
  check: () => isValid() && drawChecks({settings: Object.fromEntries([...limits].filter(([, {field, start}]) => field.value && field.value !== start).map(([name, {field}]) => [name, field.value])), scorers: cards()}),
  defaults: () => { for (const {field} of limits.values()) delete field.dataset.typed; fill({}); },
  'stop-checks': () => drawChecks({stop: true}),
  show: async (name) => { states.value = `check:${name}`; await drawFromTop(); grid.focus(); },
  remedy: async (which) => {
    const [remedy, check] = which.split(':');
    if (await apply([], `${REMEDIES[remedy][1]} rows of ${check}`, set.last, {remedy, check})) drawChecks();
  },
  report: async (ending) => {
    const answer = await ofSet('report');
    if (answer) saveFile([answer[ending]], `${set.name}-checks.${ending}`);
  },
});
checks.ontoggle = () => drawChecks();
checks.oninput = ({target}) => { target.dataset.typed = 1; };
