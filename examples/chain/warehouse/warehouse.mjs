// Service C of the chain: warehouse, in Node.js and nothing else. It has no key, no certificate and no token, and judges none:
// `countersign relay` stands before it, lets in whom the call graph allows, and says in headers who asks. It listens on a Unix socket
// in a directory that only its own user may enter: whatever process can reach the socket is the relay, as far as it can know.
import { createServer } from 'node:http';

const socket = process.argv[2];
const list = (text, separator) => (text ? text.split(separator) : []);

const server = createServer((request, response) => {
  const header = (name) => decodeURIComponent(request.headers[`x-countersign-${name}`] ?? '');
  response.setHeader('Content-Type', 'application/json');
  response.end(
    JSON.stringify({
      service: 'warehouse',
      runs: `Node.js ${process.versions.node.split('.')[0]}, behind countersign relay`,
      user: header('user'),
      scopes: list(header('scopes'), ' '),
      caller: header('client'),
      chain: list(header('chain'), ','),
      transaction: header('txn'),
      shelf: 'B7',
    }),
  );
});

server.listen(socket, () => console.log(`listening on ${socket}`));
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeAllConnections();
});
