// Prediction form: a row, its segment, the explanation, and the equivalent command.

import { PREFIX, hasKey, post } from './api.js';
import { badge, bar, byId, described, el, number, percent, pretty, sliceName } from './page.js';
import { language, t } from './i18n.js';

/** Input by segmentation, and the last prediction. */
const typed = new Map();
let shown = null;
let answered = null;
let marked = () => {};

/** `mark` is called with each predicted row, or null. */
export function start(mark) {
  marked = mark;
  byId('try-form').addEventListener('submit', (event) => {
    event.preventDefault();
    ask();
  });
}

/** Shows the form of a segmentation, with its previous input. */
export function show(one) {
  const other = shown?.info.name !== one.info.name || shown?.info.features.join() !== one.info.features.join();
  shown = one;
  const model = one.models.at(-1);
  const form = byId('try-form');
  if (!model) {
    form.replaceChildren(el('p', { class: 'muted' }, t('no_model')));
    byId('try-answer').replaceChildren();
    return;
  }
  if (other) answered = null;
  if (other || form.dataset.language !== language() || form.dataset.slices !== slices(one)) build(one, model);
  answer();
}

const slices = (one) => one.models.map((model) => model.slice).join();

function build(one, model) {
  const form = byId('try-form');
  form.dataset.language = language();
  form.dataset.slices = slices(one);
  if (!typed.has(one.info.name)) typed.set(one.info.name, {});
  const kept = typed.get(one.info.name);
  const field = (feature, i) => {
    const value = kept[feature] ?? String(Number(model.mean[i].toPrecision(3)));
    kept[feature] = value;
    const input = el('input', { name: feature, inputmode: 'decimal', required: true, autocomplete: 'off', value, oninput: (event) => { kept[feature] = event.target.value; } });
    return el('label', {}, pretty(feature), input);
  };
  const slice = el('select', { name: ' slice', onchange: (event) => { kept[' slice'] = event.target.value; } }, one.models.toReversed().map((model) => el('option', { value: model.slice, selected: kept[' slice'] === String(model.slice) }, sliceName(model.slice))));
  form.replaceChildren(
    el('div', { class: 'fields' }, one.info.features.map(field), el('label', {}, t('trained_on'), slice)),
    el('div', {}, el('button', { type: 'submit', class: 'primary' }, t('predict'))),
  );
}

/** The input as a row; a decimal comma is accepted. */
function row() {
  const kept = typed.get(shown.info.name);
  return Object.fromEntries(shown.info.features.map((feature) => [feature, Number(kept[feature].trim().replace(',', '.') || 'x')]));
}

const path = (slice) => `/api/segments/${encodeURIComponent(shown.info.name)}/predict?model=${slice}&lang=${language()}&explain=true`;

async function ask() {
  const asked = { name: shown.info.name, row: row(), slice: byId('try-form').querySelector('select').value };
  const wrong = shown.info.features.find((feature) => !Number.isFinite(asked.row[feature]));
  if (wrong) {
    answered = { ...asked, error: t('no_number', { feature: pretty(wrong) }) };
  } else {
    asked.command = command(asked);
    try {
      [asked.answer] = await post(path(asked.slice), [asked.row]);
    } catch (error) {
      asked.error = error.message;
    }
    if (asked.name !== shown.info.name) return;
    answered = asked;
  }
  marked(answered.answer ? answered.row : null);
  answer();
}

/** The last predicted row of this segmentation. */
export const probe = (name) => (answered?.name === name && answered.answer ? answered.row : null);

/** Repeats the prediction, for another language or newer models. */
export function again() {
  if (answered?.answer) ask();
}

function command({ row, slice }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = hasKey() ? " -H 'Authorization: Bearer YOUR_KEY'" : '';
  return `curl${key} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify([row]))} ${quoted(location.origin + PREFIX + path(slice))}`;
}

function answer() {
  const box = byId('try-answer');
  if (!answered) {
    box.replaceChildren(el('p', { class: 'muted' }, t('try_first')));
    return;
  }
  if (answered.error) {
    box.replaceChildren(el('p', { class: 'wrong', role: 'alert' }, answered.error));
    return;
  }
  const { answer, command } = answered;
  const copy = el('button', { type: 'button', class: 'plain', onclick: async () => {
    await navigator.clipboard?.writeText(command);
    copy.textContent = t('copied');
  } }, t('copy'));
  box.replaceChildren(
    el('p', { class: 'verdict' }, badge(answer.cluster), el('span', {}, answer.description)),
    ...(answer.explanation ? explanation(answer) : [el('p', { class: 'muted' }, t('distance', { distance: number(answer.distance, 3) }))]),
    el('div', {}, el('h3', {}, t('same_by_curl')), el('div', { class: 'command' }, el('pre', { tabindex: 0 }, command), copy)),
  );
}

function explanation({ model, explanation }) {
  const { distances, runner_up: second, margin, shares, slices } = explanation;
  const now = shown.models.find((one) => one.slice === model);
  const names = (number) => (now?.clusters[number] ? described(now.clusters[number]) : String(number));
  const most = Math.max(...distances, 1e-9);
  const parts = [el('h3', {}, t('distances')), el('div', { class: 'measures' }, distances.flatMap((distance, i) => [
    el('span', {}, names(i)), bar(distance / most, `c${i % 8}`), el('span', { class: 'value' }, number(distance, 3)),
  ]))];
  const said = second !== null && second !== undefined ? t('runner_up', { name: names(second), margin: number(margin, 3) }) : null;
  if (shares && shown.info.features.length > 1) {
    parts.push(el('h3', {}, t('shares')), el('div', { class: 'measures' }, Object.entries(shares).flatMap(([feature, share]) => [
      el('span', {}, pretty(feature)), bar(share), el('span', { class: 'value' }, percent(share, 0)),
    ])));
  }
  if (slices?.length > 0) {
    const lines = slices.map((one) => `${sliceName(one.slice)}: ${one.description}`);
    parts.push(el('h3', {}, t('each_slice')), el('p', { class: 'muted' }, lines.join(' · ')));
  }
  return said ? [el('p', { class: 'muted' }, said), ...parts] : parts;
}
