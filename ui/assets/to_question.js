// Puts the cursor in the question of the chat, which is laid out once its model is loaded; tells that it was done.
(wanted) => {
  const enter = () => {
    const box = document.querySelector('#chat-question textarea');
    // Gradio may still have to fetch the part that draws it: wait as long as the tab is in front and nothing is typed elsewhere.
    if (!document.getElementById('chat-state')?.offsetParent || document.activeElement?.matches('input, textarea')) return;
    if (box?.offsetParent) box.focus();
    else setTimeout(enter, 50);
  };
  if (wanted) enter();
  return false;
}
