// All that the person trained on or may train on; a click uses one in the draft.
let [datasets, showsAll] = [[], false];
const FEW = 5;  // datasets are in sight at first, so that the rows of the chosen one are not far below
const KINDS = {upload: 'uploaded', hub: 'on the Hub', votes: 'pairs of answers, from your votes'};
const ACTIONS = {set: {open: 'Edit rows', download: 'Download', delete: 'Delete'}, upload: {file: 'Download'}, votes: {file: 'Download'}};

const under = (textContent) => textContent ? [make('span', {className: 'under', textContent})] : [];
const when = (time) => new Date(time).toLocaleString('en', {dateStyle: 'medium', timeStyle: 'short'});
const sizeOf = (bytes) => {
  const [unit, factor] = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]].find(([, least]) => bytes >= least) ?? ['bytes', 1], value = bytes / factor;
  return bytes == null ? '' : `${value.toFixed(value < 100 && factor > 1 ? 1 : 0)} ${unit}`;
};
const act = (pick, textContent, about = '', title = '') => {
  const button = make('button', {type: 'button', className: 'link', textContent, title, ariaLabel: about && `${textContent}: ${about}`});
  button.dataset.pick = pick;
  return button;
};
// Columns of numbers are marked; a line has the nodes of each cell, then what a click on it picks and whether that is chosen.
const tableOf = (titles, lines, css = '') => {
  const columns = titles.map((title) => [title.replace('#', ''), title.startsWith('#') ? 'r' : '']);
  const cellOf = (parts, at) => { const cell = make('td', {className: columns[at][1]}, ...[parts].flat()); cell.dataset.label = columns[at][0]; return cell; };
  const rowOf = ([cells, pick, chosen]) => {
    const node = make('tr', {}, ...cells.map(cellOf));
    if (pick) [node.dataset.pick, node.tabIndex, node.ariaSelected, node.className] = [pick, 0, String(chosen), chosen ? 'chosen' : ''];
    return node;
  };
  const head = make('thead', {}, make('tr', {}, ...columns.map(([textContent, className]) => make(textContent ? 'th' : 'td', {textContent, className}))));
  const table = make('table', {className: `plain cards ${css}`}, head, make('tbody', {}, ...lines.map(rowOf)));
  if (table.querySelector('[data-pick]')) table.role = 'grid';
  return table;
};
const lineOfDataset = (one, chosen) => {
  const {name, kind, source, problem} = one, actions = Object.entries(ACTIONS[kind] ?? {}).slice(problem ? -1 : 0);
  const buttons = actions.map(([verb, text]) => act(`${verb}:${kind === 'set' ? name : source}`, text, name));
  const version = one.version ? [make('code', {textContent: one.version}), ...under(`${figure(one.operations)} ${one.operations === 1 ? 'operation' : 'operations'}`)] : '–';
  const rows = [one.rows == null ? '–' : figure(one.rows), ...under(sizeOf(one.bytes))];
  return [[[name, ...under(problem ?? one.made_of ?? KINDS[kind]), ...buttons], rows, version, one.runs.at(-1) ?? '–', one.changed ? when(one.changed) : '–'], problem ? '' : source, source === chosen];
};
const drawList = async (isKnown = true) => {
  const {dataset, openable} = JSON.parse(props.value), wanted = JSON.stringify([dataset?.source, openable]);
  if (!element.parentElement.offsetParent || (isKnown && known === wanted)) return;
  known = wanted;
  datasets = (await ask({do: 'list'}))?.datasets ?? [];
  const source = dataset?.source ?? '', chosen = source.startsWith('set:') ? source.split('@')[0] : source;
  const listed = showsAll || datasets.findIndex((one) => one.source === chosen) >= FEW ? datasets : datasets.slice(0, FEW);
  const offer = openable ? [make('p', {}, act('make', `Edit rows of ${openable}`))] : [];
  const more = listed.length < datasets.length ? [make('p', {}, act('show-all', `Show all ${figure(datasets.length)} datasets`))] : [];
  list.replaceChildren(...offer, ...(listed.length ? [tableOf(['My datasets', '#Rows', 'Version', 'Last run', 'Changed'], listed.map((one) => lineOfDataset(one, chosen)), 'sets')] : []), ...more);
};
const saveFile = (parts, name) => {
  const link = make('a', {href: URL.createObjectURL(new Blob(parts)), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 2000);
};
// Asks before something is deleted; `verb` is what the button does then.
const confirmDeletion = (place, verb, name, text) => {
  place.replaceChildren(make('div', {className: 'notice'}, make('b', {textContent: name}), ` ${text} `, act(`${verb}:${name}`, 'Delete'), ' ', act('dismiss', 'Keep it')));
  place.querySelector('button').focus();
};
Object.assign(VERBS, {
  delete: (name) => {
    const {runs} = datasets.find((one) => one.kind === 'set' && one.name === name);
    const used = runs.length ? ` These runs used it, and cannot be resumed without it: ${runs.join(', ')}.` : '';
    confirmDeletion(said, 'really-delete', name, `with all of its versions is deleted.${used}`);
  },
  'really-delete': async (name) => {
    const isDone = await ask({do: 'delete', name});
    if (isDone && set?.name === name) closeSet();
    if (isDone) { said.textContent = `Deleted ${name}.`; drawList(false); }
  },
  dismiss: () => { said.textContent = ''; },
  'show-all': async () => {
    showsAll = true;
    await drawList(false);
    const line = list.querySelectorAll('tbody tr')[FEW];
    (line?.dataset.pick ? line : line?.querySelector('button'))?.focus();  // a damaged set has only that
  },
  file: async (source) => {
    said.textContent = 'Reading the file …';
    const answer = await ask({do: 'file', source});
    if (!answer) return;
    saveFile([Uint8Array.from(atob(answer.content), (letter) => letter.charCodeAt(0))], answer.name);
    said.textContent = `Downloaded ${answer.name}.`;
  },
  download: async (name) => {
    const parts = [];
    for (let first = 0; first !== null;) {
      said.textContent = `Reading rows from ${figure(first + 1)} …`;
      const answer = await ask({do: 'lines', name, first});
      if (!answer) return;
      first = parts.push(answer.text) && answer.next;
    }
    saveFile(parts, `${name}.jsonl`);
    said.textContent = `Downloaded ${name}.jsonl.`;
  },
  // A box in place of the name: Enter saves, Escape and leaving the box cancel.
  rename: () => {
    const title = find('.set h3'), {name} = set, box = make('input', {className: 'rename', value: name, maxLength: 61, ariaLabel: 'Name of the set'});
    let isOpen = true;
    const end = async (saves) => {
      if (!isOpen) return;  // removing the box leaves it
      isOpen = false;
      const wanted = box.value.trim();
      box.replaceWith(title);
      if (saves) find('[data-pick=rename]').focus();
      if (!saves || wanted === name || !await ask({do: 'rename', name, other: wanted})) return;
      [set.name, title.textContent, said.textContent] = [wanted, wanted, `Renamed ${name} to ${wanted}. Runs find it by both names.`];
      const [source, version] = JSON.parse(props.value).dataset.source?.split('@') ?? [];
      if (source === `set:${name}`) toPage('click', {pick: `now:set:${wanted}${version ? `@${version}` : ''}`});
      drawList(false);
    };
    box.onkeydown = (event) => {
      if (event.isComposing || !['Enter', 'Escape'].includes(event.key)) return;
      event.preventDefault();
      end(event.key === 'Enter');
      find('[data-pick=rename]').focus();
    };
    box.onblur = () => end(false);
    title.replaceWith(box);
    box.select();
  },
});
