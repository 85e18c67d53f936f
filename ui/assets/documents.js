// From documents: the form, the work on it, and the review of what it made. Each question goes to `answer_on_documents`.
{
  const fold = find('.documents'), at = (name) => fold.querySelector(name);
  const [form, note, work, jobs, reviewer, review, fields] = ['form', '.note', '.work', '.job', '.reviewer', '.review', '.fields'].map(at);
  const [uploaded, typed] = [new Map(), new Map()];  // by file; edited rows by job and candidate
  let [shown, job, isBusy, isActive, wait] = [null, '', false, false, 0];  // the candidate in review, and its job

  const query = (verb, more = {}) => {
    if (verb !== 'progress') note.textContent = '';
    return ask({do: 'documents', verb, job, reviewer: reviewer.value, ...more}, note);
  };
  const list = async () => {
    const answer = await query('list');
    if (!answer) return;
    const plural = (number, noun) => `${figure(number)} ${noun}${number === 1 ? '' : 's'}`;
    jobs.replaceChildren(...answer.jobs.map((entry) => {
      const unusable = entry.unusable ? ` (${figure(entry.unusable)} unusable)` : '';
      const rows = `${plural(entry.candidates.length, 'candidate')} of ${plural(entry.passages, 'passage')}${unusable}`;
      return new Option(`${entry.files}, ${entry.name.slice(0, -9)}: ${rows}, ${figure(entry.left.length)} to review`, entry.name);
    }));
    [jobs.closest('.line').hidden, reviewer.parentElement.hidden] = [!answer.jobs.length, !answer.reviewer];
    reviewer.value ||= answer.reviewer;
    if (!form.recipe.length) form.recipe.replaceChildren(...Object.entries(answer.recipes).map(([name, recipe]) => new Option(recipe.title, name)));
    (form.recipe.onchange = () => { form.detail.placeholder = answer.recipes[form.recipe.value].detail ?? 'required'; })();
  };
  const draw = (answer) => {
    if (!answer) return;  // refused: what is under way is still followed
    clearTimeout(wait);
    if (isActive && !answer.active) list();
    [work.innerHTML, isActive, at('[data-pick=stop]').hidden] = [answer.html, answer.active, !answer.active];
    if (isActive) wait = setTimeout(follow, 700);
  };
  const follow = async () => draw(await query('progress') ?? {html: '', active: isActive});
  const start = async (verb) => {
    form.querySelector('details').open ||= !form.checkValidity();  // so that a wrong limit can be shown
    if (!form.reportValidity()) return;
    for (const file of at('[type=file]').files) {
      note.textContent = `Uploading ${file.name} …`;
      const saved = uploaded.get(file) ?? await upload(file).catch((error) => ({problem: String(error?.message ?? error)}));
      if (saved.problem) return note.replaceChildren(make('p', {className: 'trouble', textContent: `${file.name} cannot be uploaded. ${saved.problem}`}));
      uploaded.set(file, saved);
    }
    const documents = [...at('[type=file]').files].map((file) => uploaded.get(file).path);
    const texts = Object.fromEntries([...new FormData(form)].filter(([, text]) => text));
    draw(await query(verb, {...texts, documents, job: jobs.value}));
  };
  const show = (answer) => {
    const wasTyping = fields.contains(document.activeElement), {candidate, candidates, agreements, unsupported} = answer;
    const key = `${job} ${candidate}`, row = typed.get(key) ?? answer.row;
    const boxOf = (name, parent, part) => box(name, parent[part], (text) => { parent[part] = text; }, () => typed.set(key, row));
    shown = {...answer, row, key};
    fields.replaceChildren(...(row.messages?.map((turn) => boxOf(turn.role, turn, 'content')) ?? Object.keys(row).map((name) => boxOf(name, row, name))));
    [at('.place').textContent, at('.passage').textContent] = [answer.place, answer.text];
    at('.claims').textContent = unsupported.length ? `Not in the passage: ${unsupported.join(', ')}` : '';
    const counts = [`Candidate ${figure(candidates.indexOf(candidate) + 1)} of ${figure(candidates.length)}`, answer.verdict || 'not judged', `${figure(answer.left.length)} left`, `${figure(answer.accepted)} accepted`];
    at('.counts').textContent = counts.join(' · ');
    at('.agreements').replaceChildren(...agreements.map(({reviewers, percent, rows, kappa, differ}) => {
      const links = differ.flatMap((number) => {
        const link = make('button', {type: 'button', className: 'link', textContent: figure(candidates.indexOf(number) + 1)});
        [link.dataset.pick, link.ariaLabel] = [`candidate:${number}`, `Candidate ${link.textContent}`];
        return [' ', link];
      });
      const text = `${reviewers.join(' and ')} agree on ${percent}% of ${figure(rows)}, kappa ${kappa}${differ.length ? '; they differ on' : ''}`;
      return make('p', {className: 'small'}, text, ...links);
    }));
    if (wasTyping) review.focus();
  };
  const go = async (more = {}) => {
    if (isBusy) return;
    isBusy = true;
    const answer = await query('review', more);
    isBusy = false;
    if (answer && more.verdict) typed.delete(shown.key);
    if (answer?.row) show(answer);
    else if (answer) [note.textContent, review.hidden] = [`No candidates yet; ${figure(answer.unusable)} unusable answers.`, true];
  };
  const judge = (word) => {
    const {candidate, row} = shown, left = shown.left.filter((other) => other !== candidate);
    const isEdit = word === 'accept' && (typed.has(shown.key) || shown.verdict === 'edit');
    return go({candidate, verdict: isEdit ? 'edit' : word, row: isEdit ? row : null, show: left.find((other) => other > candidate) ?? left[0] ?? candidate});
  };
  for (const verb of ['estimate', 'generate', 'continue']) VERBS[verb] = () => start(verb);
  for (const word of ['accept', 'reject', 'skip']) VERBS[word] = () => judge(word);
  VERBS.stop = async () => draw(await query('stop'));
  VERBS.review = async () => {
    [job, review.hidden, at('.set-name').value] = [jobs.value, false, jobs.value];
    await go();
    if (!review.hidden) review.focus();
  };
  VERBS['delete-job'] = () => confirmDeletion(note, 'really-delete-job', jobs.value, 'with its candidates and verdicts is deleted; sets made of it stay.');
  VERBS['really-delete-job'] = async (name) => {
    if (!await ask({do: 'documents', verb: 'delete', job: name}, note)) return;
    if (job === name) review.hidden = true;
    await list();
    note.textContent = `Deleted ${name}.`;
    (jobs.options.length ? jobs : fold.firstElementChild).focus();
  };
  VERBS.dismiss = () => {
    if (note.contains(document.activeElement)) jobs.focus();
    said.textContent = note.textContent = '';
  };
  VERBS.edit = () => fields.querySelectorAll('textarea')[1].focus();
  VERBS.candidate = (number) => go({show: Number(number)});
  VERBS.step = (by) => go({show: shown.candidates[shown.candidates.indexOf(shown.candidate) + Number(by)] ?? shown.candidate});
  VERBS['make-set'] = async () => { if (await query('make', {name: at('.set-name').value})) toPage('click', {pick: `set:${at('.set-name').value}`}); };
  reviewer.onchange = () => { if (!review.hidden) go(); };  // who has other verdicts
  const KEYS = {a: 'accept', e: 'edit', r: 'reject', s: 'skip', arrowleft: 'step:-1', arrowright: 'step:1'};
  review.onkeydown = (event) => {
    const isTyping = event.target.matches('textarea, input'), isCommand = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    const verb = isTyping ? isCommand && key === 'enter' && 'accept' : !isCommand && !event.altKey && !event.repeat && KEYS[key];
    if (verb) trigger('click', {pick: verb}); else if (isTyping && key === 'escape') review.focus(); else return;
    event.preventDefault();
  };
  fold.ontoggle = () => { if (fold.open) { list(); follow(); } };
}
