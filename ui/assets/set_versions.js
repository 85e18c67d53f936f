// The history of the open set: its versions, with the runs that used each; and what differs between two of them.
const [steps, differences, from, to] = ['.steps', '.changes', '.from', '.to'].map(find);
const PAGE = 20;

const operationOf = (operation) => {
  const facts = Object.entries(operation ?? {kind: 'the source'}).filter(([, value]) => value !== '' && value !== false && value?.length !== 0);
  return facts.map(([key, value]) => key === 'kind' ? value : `${key} ${value}`).join(' ').slice(0, 200);
};
// Buttons that turn the pages of a list.
const pagerOf = (verb, first, count, total) => {
  const turns = [[first - count, '← Previous'], [first + count, 'Next →']].filter(([start]) => start >= 0 && start < total);
  return total > count ? [make('p', {className: 'small num pager'}, `${figure(first + 1)}–${figure(Math.min(first + count, total))} of ${figure(total)} `, ...turns.flatMap(([start, text]) => [act(`${verb}:${start}`, text), ' ']))] : [];
};
const choose = (box, version) => {
  if (![...box.options].some((option) => option.value === version)) box.append(new Option(version, version));
  box.value = version;
};
const drawLog = async (first = 0) => {
  if (!log.open || !set) return;
  const answer = await ofSet('log', {first, count: PAGE});
  if (!answer) return;
  const lines = answer.steps.map(({id, operation, author, time, version, is_undone}) => {
    const runs = (version && answer.runs[version]) || [], used = runs.length ? `used by ${runs.join(', ')}` : '';
    const buttons = version ? [act(`set:${set.name}@${version}`, 'Train on', version), act(`rows-of:${version}`, 'Rows', version), act(`compare:${version}`, 'Compare', version)] : [];
    const undo = !id ? [] : is_undone ? ['undone'] : [act(`undo:${id}`, 'Undo', `operation ${id}`)];
    return [[figure(id), operationOf(operation), author, when(time), version ? [make('code', {textContent: version}), ...under(used)] : '–', [...buttons, ...undo]]];
  });
  steps.replaceChildren(tableOf(['#No.', 'Operation', 'By', 'When', 'Version', ''], lines), ...pagerOf('steps', first, PAGE, answer.last + 1));
  for (const box of [from, to]) {
    const chosen = box.value, names = new Set(answer.steps.map((step) => step.version).filter(Boolean));
    box.replaceChildren(new Option(`now (${answer.version})`, ''), ...[...names].map((name) => new Option(name)));
    choose(box, chosen);
  }
};
const hitsOf = (lines) => {
  const lineOf = ({row, kind, column, before, after}) => [[figure(row), [make('b', {textContent: kind === 'changed' || !kind ? column : kind}), ...(kind === 'added' ? [] : [make('del', {textContent: before})]), ...(kind === 'gone' ? [] : [make('ins', {textContent: after})])]]];
  return tableOf(['#Row', 'Before and after'], lines.map(lineOf));
};
const drawChanges = async (first = 0) => {
  differences.textContent = 'Reading rows …';
  const answer = await ofSet('changes', {version: from.value, other: to.value, first, count: PAGE});
  if (!answer) { differences.textContent = ''; return; }
  const kinds = Object.entries(answer.kinds).map(([kind, count]) => `${figure(count)} ${kind}`).join(', ');
  const heading = make('p', {className: 'small', textContent: answer.count ? `${figure(answer.count)} ${answer.count === 1 ? 'row differs' : 'rows differ'}: ${kinds}.` : 'No row differs.'});
  differences.replaceChildren(heading, ...pagerOf('changes', first, PAGE, answer.count), ...(answer.count ? [hitsOf(answer.hits)] : []));
};
Object.assign(VERBS, {
  undo: async (id) => { if (await apply([{kind: 'undo', id: Number(id)}], `Undid operation ${id}`)) drawChecks(); },
  steps: (first) => drawLog(Number(first)),
  changes: (first) => drawChanges(Number(first)),
  compare: (version) => { choose(from, version); to.value = ''; differences.scrollIntoView({block: 'nearest'}); return drawChanges(); },
  'rows-of': (version) => {
    if (!leaveRow()) return;
    [set.version, find('.earlier').hidden, find('.earlier b').textContent, editor.hidden] = [version, !version, version, true];
    open.classList.toggle('read-only', Boolean(version));
    selected.clear();
    grid.focus();
    return drawFromTop();
  },
  preview: async () => {
    hits.textContent = 'Searching all rows …';
    const wanted = JSON.stringify(replacement()), answer = await ofSet('hits', {operations: [replacement()]}), count = answer?.count;
    const about = count ? `Changes ${figure(count)} ${count === 1 ? 'row' : 'rows'}; the first ${answer.hits.length} are listed.` : answer ? 'No matching rows' : '';
    hits.replaceChildren(make('p', {className: 'small', textContent: about}), ...(count ? [hitsOf(answer.hits)] : []));
    find('[data-pick=replace]').disabled = !count || wanted !== JSON.stringify(replacement());
  },
});
log.ontoggle = () => drawLog();
