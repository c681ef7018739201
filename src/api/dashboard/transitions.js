// Changes between the slices: records that moved to another segment, and movement of the centroids.

import { axisName, drawAxes, scaleOf } from './axis.js';
import { badge, byId, count, described, el, labels, number, percent, pretty, sliceName, svg } from './page.js';
import { t } from './i18n.js';

const HEIGHT = 400;
/** Available width, so that text keeps its size on a phone. */
const roomIn = (id) => Math.max(280, byId(id).clientWidth);

let drawn = null;
addEventListener('resize', () => {
  if (drawn && roomIn('flow') !== drawn.room) show(drawn.shown, drawn.axes);
});

/** Shows the changes of {models, points} on these axes ({name, logarithmic}). */
export function show(shown, axes) {
  const { models } = shown;
  drawn = { shown, axes, room: roomIn('flow') };
  const gone = models.map((model, i) => (i > 0 && fits(models[i - 1], model) ? shares(model) : null)).filter(Boolean);
  byId('changed-lead').textContent = gone.length > 0 ? gone.map((one) => t(`moved_${one.slice}`, one)).join(' ') : t('nothing_to_compare');
  // What is open stays open when the charts are drawn again.
  const open = ['flow', 'moves'].map((id) => byId(id).querySelector('details')?.open ?? false);
  byId('flow').replaceChildren(...(models.length > 1 ? [flow(models), movers(models)] : [el('p', { class: 'muted' }, t('nothing_to_compare'))]));
  byId('moves').replaceChildren(...(models.length > 0 ? [...moves(models, axes), centres(models)] : []));
  ['flow', 'moves'].forEach((id, i) => byId(id).querySelector('details')?.toggleAttribute('open', open[i]));
}

/** Whether the later model has a transition matrix of the earlier one's rows. */
const fits = (earlier, model) =>
  Array.isArray(model.moved) && model.slice === earlier.slice + 1 && model.moved.length === earlier.clusters.length && model.features.join() === earlier.features.join();

function shares(model) {
  const all = d3.sum(model.moved.flat());
  const stayed = d3.sum(model.moved.map((row, i) => row[i] ?? 0));
  return { n: count(all - stayed), all: count(all), share: percent(all > 0 ? (all - stayed) / all : 0), slice: model.slice };
}

/** Columns of clusters, with height by size, and ribbons of the records in both slices. */
function flow(models) {
  const width = roomIn('flow');
  const most = d3.max(models, (model) => model.rows) || 1;
  const [gap, wide, top] = [10, 16, 44];
  const room = HEIGHT - top - 20 - gap * (d3.max(models, (model) => model.clusters.length) - 1);
  const column = (i) => 70 + (i * (width - 140 - wide)) / Math.max(1, models.length - 1);
  const stacks = models.map((model) => {
    let y = top;
    return model.clusters.map((cluster) => {
      const height = (cluster.size / most) * room;
      const place = { y, height };
      y += height + gap;
      return place;
    });
  });
  const [ribbons, bars] = [[], []];
  models.forEach((model, i) => {
    const x = column(i);
    // Short names on narrow screens.
    const name = width < 460 ? `${model.slice}/3` : sliceName(model.slice);
    bars.push(
      svg('text', { class: 'name', x: x + wide / 2, y: 14, 'text-anchor': 'middle' }, name),
      svg('text', { x: x + wide / 2, y: 30, 'text-anchor': 'middle' }, t('rows_n', { n: count(model.rows) })),
    );
    model.clusters.forEach((cluster, c) => {
      const { y, height } = stacks[i][c];
      const side = i === models.length - 1 ? { x: x + wide + 8, 'text-anchor': 'start' } : { x: x - 8, 'text-anchor': 'end' };
      bars.push(
        svg('rect', { class: `fill c${cluster.cluster % 8}`, x, y, width: wide, height: Math.max(height, 1.5), rx: 3 }, svg('title', {}, `${described(cluster)}: ${count(cluster.size)}`)),
        svg('text', { ...side, y: y + height / 2 + 4 }, `${cluster.cluster} · ${percent(cluster.size / Math.max(1, model.rows), 0)}`),
      );
    });
    if (i > 0 && fits(models[i - 1], model)) ribbons.push(...ribbonsBetween(models, i, stacks, column, wide, room / most));
  });
  const label = models.map((model) => `${sliceName(model.slice)}: ${model.clusters.map((c) => `${described(c)} ${count(c.size)}`).join(', ')}`).join('. ');
  return svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': label }, ...ribbons, ...bars);
}

function ribbonsBetween(models, i, stacks, column, wide, unit) {
  const [before, model] = [models[i - 1], models[i]];
  const left = stacks[i - 1].map(({ y }) => y);
  const right = stacks[i].map(({ y }) => y);
  const [x0, x1] = [column(i - 1) + wide, column(i)];
  const middle = (x0 + x1) / 2;
  return model.moved.flatMap((row, from) => row.map((rows, to) => {
    if (rows === 0) return null;
    const height = rows * unit;
    const [y0, y1] = [left[from], right[to]];
    left[from] += height;
    right[to] += height;
    const d = `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}V${y1 + height}C${middle} ${y1 + height} ${middle} ${y0 + height} ${x0} ${y0 + height}Z`;
    const title = `${described(before.clusters[from])} → ${described(model.clusters[to])}: ${count(rows)}`;
    return svg('path', { class: `ribbon fill c${before.clusters[from].cluster % 8} ${from === to ? 'stays' : ''}`, d }, svg('title', {}, title));
  })).filter(Boolean);
}

/** Collapsible table; the last column is numeric. */
function figures(head, lines, none) {
  const cell = (tag, i, text) => el(tag, { scope: tag === 'th' ? 'col' : null, class: i === head.length - 1 ? 'right' : null }, text);
  const table = () => el(
    'table',
    {},
    el('thead', {}, el('tr', {}, head.map((text, i) => cell('th', i, text)))),
    el('tbody', {}, lines.map((line) => el('tr', {}, line.map((text, i) => cell('td', i, text))))),
  );
  const inside = lines.length > 0 ? el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': t('in_figures') }, table()) : el('p', { class: 'muted' }, none);
  return el('details', { class: 'after' }, el('summary', {}, t('in_figures')), el('div', { class: 'inside' }, inside));
}

/** Table of the records that moved. */
function movers(models) {
  const lines = models.flatMap((model, i) => {
    if (i === 0 || !fits(models[i - 1], model)) return [];
    const before = models[i - 1];
    const step = `${sliceName(before.slice)} → ${sliceName(model.slice)}`;
    const line = (rows, from, to) => (from !== to && rows > 0 ? [[step, described(before.clusters[from]), described(model.clusters[to]), count(rows)]] : []);
    return model.moved.flatMap((row, from) => row.flatMap((rows, to) => line(rows, from, to)));
  });
  return figures([t('step'), t('from'), t('to'), t('records')], lines, t('nobody_moved'));
}

/** Table of the centroids. */
function centres(models) {
  const lines = models.flatMap((model) => model.clusters.map((cluster) => {
    const centre = model.features.map((feature) => `${pretty(feature)} ${number(cluster.centroid[feature])}`).join(', ');
    return [sliceName(model.slice), described(cluster), centre, count(cluster.size)];
  }));
  return figures([t('slice'), t('segment'), t('centroid'), t('records')], lines, '');
}

/** Centroids of each cluster in slices 1, 2 and 3, joined by a line. */
function moves(models, axes) {
  const width = roomIn('moves');
  const frame = { left: 52, right: width - 20, top: 26, bottom: HEIGHT - 44 };
  const clusters = models.at(-1).clusters;
  const of = (name) => models.flatMap((model) => model.clusters.map((cluster) => cluster.centroid[name])).filter((value) => value !== undefined);
  const roomy = (name, logarithmic, from, to) => {
    const scale = scaleOf(of(name), logarithmic).range([from, to]);
    // Margin for badges and names.
    return { scale: scale.domain([scale.invert(from - (to - from) * 0.07), scale.invert(to + (to - from) * 0.07)]), logarithmic, name: axisName(name, logarithmic) };
  };
  const [x, y] = axes;
  const across = roomy(x.name, x.logarithmic, frame.left, frame.right);
  const one = !y;
  const row = d3.scalePoint(clusters.map((cluster) => cluster.cluster), [frame.bottom, frame.top]).padding(0.7);
  const up = one ? { scale: Object.assign((value) => value, { domain: () => [0, 0], ticks: () => [] }), logarithmic: false, name: '' } : roomy(y.name, y.logarithmic, frame.bottom, frame.top);
  const ground = svg('g');
  drawAxes(ground, frame, across, up);
  const trails = clusters.map((cluster) => models
    .map((model) => model.clusters.find((one) => one.cluster === cluster.cluster)).filter(Boolean)
    .map((at) => [across.scale(at.centroid[x.name]), one ? row(cluster.cluster) : up.scale(at.centroid[y.name])]));
  const marks = clusters.map((cluster, i) => {
    const [endX, endY] = trails[i].at(-1);
    return svg(
      'g',
      { class: `c${cluster.cluster % 8}` },
      svg('path', { class: 'trail stroke', d: d3.line()(trails[i]) }),
      ...trails[i].slice(0, -1).map(([cx, cy], step) => svg('circle', { class: 'badge fill', cx, cy, r: 4.5 + step * 2.5 }, svg('title', {}, sliceName(models[step].slice)))),
      svg('circle', { class: 'badge fill', cx: endX, cy: endY, r: 11 }),
      svg('text', { class: 'digit', x: endX, y: endY + 4 }, String(cluster.cluster)),
    );
  });
  const ends = clusters.map((cluster, i) => ({ cluster, x: trails[i].at(-1)[0], y: trails[i].at(-1)[1], name: described(cluster) }));
  // Names without room are below the chart, with their numbers.
  const rest = [];
  const names = labels(ends, frame, trails.flat(), () => true, rest);
  return [
    svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, role: 'img', 'aria-label': t('moves') }, ground, ...marks, ...names),
    el('div', { class: 'names' }, rest.map(({ cluster, name }) => el('span', {}, badge(cluster.cluster), name))),
  ];
}
