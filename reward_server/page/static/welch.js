// How far apart two rewards must lie to count as different: Welch's t test at 95 %, as `motion-reward compare` has it.

const T = [12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]; // Student's t, 97.5 %, for 1 to 10 degrees of freedom

/** Between two whole degrees of freedom, interpolated by 1 / freedom, which is up to 11 % too much; beyond the table, a series within 0.01. */
function quantile(freedom) {
  if (freedom >= T.length) return 1.96 + 2.4 / freedom + 3 / freedom ** 2;
  const low = Math.max(1, Math.floor(freedom));
  const share = (1 / low - 1 / freedom) / (1 / low - 1 / (low + 1));
  return T[low - 1] + share * (T[low] - T[low - 1]);
}

/** The margin for two rewards with these standard errors, over these numbers of windows (or draws), two or more each. */
export function margin(errors, samples) {
  const squares = errors.map((error) => error ** 2);
  const total = squares[0] + squares[1];
  if (!total) return 0;
  const freedom = total ** 2 / (squares[0] ** 2 / (samples[0] - 1) + squares[1] ** 2 / (samples[1] - 1));
  return quantile(freedom) * Math.sqrt(total);
}
