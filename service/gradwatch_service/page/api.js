// The REST interface, with the reader's token where the service asks for one.

const KEY = "gradwatch-token"; // in sessionStorage: gone with the tab, never sent to another host

export class Refused extends Error {}

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const setToken = (token) => sessionStorage.setItem(KEY, token);

export async function get(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const text = query.toString();
  const answer = await fetch(`api/v1${path}${text ? `?${text}` : ""}`, { headers });
  if (answer.status === 401 || answer.status === 403) throw new Refused(await detail(answer));
  if (!answer.ok) throw new Problem(answer.status, await detail(answer));
  return answer.json();
}

// Null where the service has nothing of the kind (404, 422), so that one missing curve hides no other.
export async function getOrNull(path, parameters) {
  try {
    return await get(path, parameters);
  } catch (error) {
    if (error instanceof Problem && error.status < 500) return null;
    throw error;
  }
}

async function detail(answer) {
  try {
    const problem = await answer.json();
    return problem.detail ?? problem.title ?? answer.statusText;
  } catch {
    return answer.statusText;
  }
}
