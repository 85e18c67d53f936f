// Focuses the chat's question, which is laid out once its model is loaded.
(wanted) => {
  // The tab may still have to come to the front, and Gradio to fetch the part that draws the box: a minute at most.
  const enter = (tries) => {
    const box = document.querySelector('#chat-question textarea');
    if (box?.offsetParent) box.focus();
    else if (tries && !document.activeElement?.matches('input, textarea')) setTimeout(enter, 50, tries - 1);
  };
  if (wanted.startsWith('chat')) enter(1200);
}
