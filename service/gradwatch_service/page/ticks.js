// Where to put the labels of an axis: at 1, 2 and 5 times a power of ten, about as many as asked for.

export function linearTicks(low, high, wanted = 5) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

export function logTicks(low, high, wanted = 6) {
  const decades = Math.log10(high / low);
  if (decades < 0.5) return linearTicks(low, high, 4);
  const within = decades <= 2 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.round(decades / wanted));
  const ticks = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
    if (k % every) continue;
    for (const m of within) {
      const tick = Number((m * 10 ** k).toPrecision(6));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}
