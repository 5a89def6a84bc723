// graphql-ws: subscriptions, queries and mutations over one WebSocket.
import { createClient } from "graphql-ws";
import WebSocket from "ws";
import { WATCH, WEB_SOCKET, followed, story, watched } from "./story.mjs";

const made = (options) => createClient({ ...WEB_SOCKET, webSocketImpl: WebSocket, retryAttempts: 0, ...options });
const client = made();
const ask = async (query, variables, asked = client) => {
  const { value } = await asked.iterate({ query, variables }).next();
  if (value.errors) throw value.errors;
  return value.data;
};
const nobody = made({ connectionParams: {} });
const found = await story("ws", {
  ask,
  askNobody: (query, variables) => ask(query, variables, nobody),
  // An operation's message has errors; who is refused at the start is told so by the end of the connection.
  refusedAs: 4403,
  codes: (error) => (error.code ? [error.code] : error.map(({ extensions }) => extensions.code)),
});
const messages = client.iterate({ query: WATCH, variables: { id: found.id } });
await watched(found, messages, ask);
await messages.return();
await followed(found, (query, variables) => client.iterate({ query, variables }), ask);
console.log("subscriptions over the same socket");
await client.dispose();
