// Scrolls to where a start leads: to the progress of its run, or to the question or the reason why it did not start.
() => {
  const message = [...document.querySelectorAll('#confirm-start, #start-problems')].find((part) => part.offsetHeight);
  message ? message.scrollIntoView({block: 'center'}) : window.scrollTo(0, 0);
}
