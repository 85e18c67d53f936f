// Requests permission to notify when its button is pressed; `access.js` notifies. Only this browser knows.
const draw = () => {
  const isKnown = 'Notification' in window;
  const isOn = isKnown && Notification.permission === 'granted' && localStorage.getItem('loratory-notify') === 'on';
  const isRefused = isKnown && Notification.permission === 'denied';
  const [button, words] = [element.querySelector('button'), element.querySelector('p')];
  button.textContent = isOn ? 'Stop notifying' : 'Notify in this browser';
  button.disabled = !isKnown || isRefused;
  words.textContent = isOn ? 'This browser notifies you when a run ends, while a page of Loratory is open.'
    : isRefused ? 'This browser refuses notifications from this address. Allow them in its settings, then reload the page.'
    : isKnown ? '' : 'This browser has no notifications for this address.';
  return isOn;
};
element.querySelector('button').addEventListener('click', async () => {
  if (draw()) localStorage.setItem('loratory-notify', 'off');
  else if (await Notification.requestPermission() === 'granted') localStorage.setItem('loratory-notify', 'on');
  draw();
});
draw();
