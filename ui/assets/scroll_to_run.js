// The table may be long, and the Lab tab opens runs too: scrolls to the run once it is laid out.
() => {
  const find = (tries) => {
    const run = document.getElementById('shared-run');
    if (run?.offsetParent) run.scrollIntoView({block: 'start'});
    else if (tries) setTimeout(find, 100, tries - 1);
  };
  find(50);
}
