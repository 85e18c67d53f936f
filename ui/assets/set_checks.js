// The row checks of the open set: what they found, with buttons that show these rows or change them in one operation.
const [checks, progress, found, states] = ['.checks', '.progress-line', '.found', '.state'].map(find);
const REMEDIES = {
  exclude: ['Exclude all', 'Excluded', 'Leaves these rows out'],
  best: ['Keep the best', 'Excluded', 'Of the rows that belong together, the one with the longest answer stays'],
  hold_out: ['Hold out', 'Held out', 'Holds out the training rows that are similar to a held-out row'],
  mask: ['Mask', 'Masked', 'Replaces what was found, such as by [mail]'],
};
let [poll, isChecking] = [0, false];

const exampleOf = ({row, why, sample, other}) => make('div', {}, make('b', {textContent: `Row ${figure(row + 1)} `}), why, ...[sample, other].flatMap(under));
const lineOfCheck = ({name, finds, rows, kinds, examples, below, counts}) => {
  const kind = Object.entries(kinds).map(([key, count]) => `${figure(count)} ${key}`).join(', ');
  const next = below.length ? [make('div', {className: 'count', textContent: 'Below the similarity, not found:'}), ...below.map(exampleOf)] : [];
  const remedies = ['exclude', 'held_out' in kinds ? 'hold_out' : 'best', 'mask'].filter((one) => counts[one]).map((one) => act(`remedy:${one}:${name}`, `${REMEDIES[one][0]} (${figure(counts[one])})`, name, REMEDIES[one][2]));
  return [[[make('b', {textContent: name}), ...under(finds)], [figure(rows), ...under(kind)], [...examples.map(exampleOf), ...next], rows ? [act(`show:${name}`, 'Show', name), ...remedies] : '–']];
};
const drawFound = ({settings, source, version, checks: all = []}) => {
  for (const field of checks.querySelectorAll('[name]')) field.value = settings[field.name] ?? '';
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
  const mine = poll += 1, answer = await ofSet('check', more);
  if (!answer || mine !== poll || !set) return;
  if (progress.innerHTML !== answer.html) progress.innerHTML = answer.html;
  isChecking = answer.is_running;
  [find('[data-pick=check]').disabled, find('[data-pick=stop-checks]').hidden] = [isChecking, !isChecking];
  if (isChecking) setTimeout(() => { if (mine === poll) drawChecks(); }, 500); else drawFound(answer);
};
const forgetChecks = () => { poll += 1; isChecking = false; progress.textContent = ''; drawFound({settings: {}}); };
Object.assign(VERBS, {
  check: () => drawChecks({settings: Object.fromEntries([...checks.querySelectorAll('[name]')].filter((field) => field.value).map((field) => [field.name, field.value]))}),
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
