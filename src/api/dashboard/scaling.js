// Scaled values of features, in which distances to centroids are measured (docs/models.md).

/** The scaled value of a value of this feature, but for an offset. */
export function scaledBy(model, feature) {
  const i = model.features.indexOf(feature);
  const scale = model.scaling?.[i] ?? { scale: 'standard', weight: 1, spread: model.std[i] };
  const factor = scale.weight / (scale.spread || 1);
  return scale.scale === 'log' ? (value) => Math.log1p(value) * factor : (value) => value * factor;
}

/** Whether a model's feature is on a logarithmic scale. */
export const isLogScaled = (model, feature) => model.scaling?.[model.features.indexOf(feature)]?.scale === 'log';

/** Scales that are not by mean and standard deviation: "rating count log, weight 2". */
export function scalingWords(model, pretty) {
  const words = ({ scale, weight }) => [scale === 'standard' ? '' : scale, weight === 1 ? '' : `× ${weight}`].filter(Boolean).join(' ');
  return model.features.map((feature, i) => [feature, words(model.scaling?.[i] ?? { scale: 'standard', weight: 1 })]).filter(([, text]) => text).map(([feature, text]) => `${pretty(feature)} ${text}`).join('; ');
}
