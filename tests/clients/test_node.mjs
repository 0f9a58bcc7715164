// Checks that a @grpc/grpc-js client gets the answers in cases.json, by the .proto files.
//
// Starts the server that CEDAR_PDP_TEST_BINARY names, by default target/debug/cedar-pdp. Uses the
// packages of examples/node, and runs the example there.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('../../', import.meta.url));
const require = createRequire(join(root, 'examples/node/'));
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const cases = JSON.parse(await readFile(join(root, 'tests/clients/cases.json'), 'utf8'));
const definitions = protoLoader.loadSync(
  ['pdp/v1/authorization.proto', 'pdp/v1/policy_store.proto', 'google/rpc/error_details.proto'],
  {
    includeDirs: [join(root, 'proto'), join(root, 'third_party')],
    keepCase: true,
    enums: String,
    longs: String,
    defaults: true,
    oneofs: true,
  },
);
const { AuthorizationService, PolicyStoreService } = grpc.loadPackageDefinition(definitions).pdp.v1;

/** Starts the server, and stops it after the test. Returns the address that it printed. */
async function serve(t, policies, { listen = '127.0.0.1:0', args = [] } = {}) {
  const target = process.env.CARGO_TARGET_DIR ?? 'target';
  const binary = process.env.CEDAR_PDP_TEST_BINARY ?? join(target, 'debug/cedar-pdp');
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('CEDAR_PDP_')),
  );
  // Its default port is the same for all services.
  env.CEDAR_PDP_ADMIN_LISTEN = 'off';
  const server = spawn(
    resolve(root, binary),
    ['serve', '--policies', policies, '--listen', listen, ...args],
    { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = once(server, 'exit');
  for await (const line of createInterface({ input: server.stdout })) {
    const [, address] = /^listening on (\S+)$/.exec(line);
    t.after(async () => {
      server.kill('SIGTERM');
      assert.deepEqual(await ended, [0, null]);
    });
    return address;
  }
  throw new Error('the server ended before it listened');
}

/** Creates a client, and closes it after the test. */
function connect(t, Service, address) {
  const client = new Service(address, grpc.credentials.createInsecure());
  t.after(() => client.close());
  return client;
}

/** Creates a directory, and removes it after the test. */
async function temporaryDirectory(t) {
  const directory = await mkdtemp(join(tmpdir(), 'cedar-pdp-'));
  t.after(() => rm(directory, { recursive: true }));
  return directory;
}

// A time limit; nothing here takes long.
const options = () => ({ deadline: Date.now() + 30_000 });

/** Makes a unary call; returns a promise of the answer. */
function call(client, method, request) {
  return new Promise((fulfil, reject) => {
    client[method](request, options(), (error, answer) =>
      error ? reject(error) : fulfil(answer),
    );
  });
}

function checkAnswer(answer, expected, revision) {
  assert.equal(answer.decision, expected.decision);
  assert.deepEqual(answer.determining_policies, expected.determining_policies);
  assert.deepEqual(
    answer.errors.map(({ policy_id }) => policy_id),
    expected.errors ?? [],
  );
  assert.equal(answer.revision, revision);
  assert.equal(answer.explanation, null);
}

/** Checks a google.rpc.Status. */
function checkError(status, expected) {
  assert.equal(status.code, grpc.status[expected.code]);
  assert.equal(status.details.length, 1);
  const [{ type_url, value }] = status.details;
  const type = type_url.split('/').pop();
  const detail = definitions[type].deserialize(value);
  if (expected.field !== undefined) {
    assert.equal(type, 'google.rpc.BadRequest');
    assert.deepEqual(
      detail.field_violations.map(({ field }) => field),
      [expected.field],
    );
  } else {
    assert.equal(type, 'google.rpc.ErrorInfo');
    assert.deepEqual([detail.domain, detail.reason], ['cedar-pdp', expected.reason]);
  }
}

/** Checks an item of a batch or stream. */
function checkResult(result, expected, revision) {
  if (expected.decision) {
    assert.equal(result.result, 'response');
    checkAnswer(result.response, expected, revision);
  } else {
    assert.equal(result.result, 'error');
    checkError(result.error, expected);
  }
}

let address, client, revision;

// Shared resources are closed after the last test: a hook set within a hook runs at that hook's
// end.
const endings = [];
const file = { after: (end) => endings.push(end) };
after(async () => {
  for (const end of endings) await end();
});

before(async () => {
  address = await serve(file, 'policies', {
    args: ['--anonymous-principal', 'Platform::Visitor::"anonymous"'],
  });
  client = connect(file, AuthorizationService, address);
  const store = connect(file, PolicyStoreService, address);
  ({ revision } = (await call(store, 'GetStatus', {})).status);
});

for (const expected of cases.answers) {
  test(`Authorize answers: ${expected.name}`, async () => {
    checkAnswer(await call(client, 'Authorize', expected.request), expected, revision);
  });
}

for (const expected of cases.errors) {
  test(`Authorize error names the field: ${expected.name}`, async () => {
    const error = await call(client, 'Authorize', expected.request).then(
      () => assert.fail('it was answered'),
      (error) => error,
    );
    assert.equal(error.code, grpc.status[expected.code]);
    const [details] = error.metadata.get('grpc-status-details-bin');
    checkError(definitions['google.rpc.Status'].deserialize(details), expected);
  });
}

test('batch keeps order and revision', async () => {
  // An error between answers belongs to its item alone.
  const items = cases.errors.flatMap((error, n) => [cases.answers[n], error]);
  const answer = await call(client, 'BatchAuthorize', {
    requests: items.map(({ request }) => request),
  });
  assert.equal(answer.revision, revision);
  assert.equal(answer.results.length, items.length);
  items.forEach((expected, n) => checkResult(answer.results[n], expected, revision));
});

test('stream answers carry correlation ids', async () => {
  // Ids from the top of the range: 64 bits, unsigned, and so beyond a JavaScript number.
  const number = (n) => String(2n ** 64n - 1n - BigInt(n));
  const items = new Map(
    [...cases.answers, ...cases.errors].map((expected, n) => [number(n), expected]),
  );
  const stream = client.StreamAuthorize(options());
  const status = once(stream, 'status');
  for (const [correlation_id, { request }] of items) stream.write({ correlation_id, request });
  stream.end();
  for await (const result of stream) {
    checkResult(result, items.get(result.correlation_id), revision);
    items.delete(result.correlation_id);
  }
  assert.equal(items.size, 0);
  assert.equal((await status)[0].code, grpc.status.OK);
});

test('open stream answers each item', async () => {
  const [expected] = cases.answers;
  const stream = client.StreamAuthorize(options());
  const results = stream[Symbol.asyncIterator]();
  for (const correlation_id of ['0', '1', '2']) {
    // Sends the next item only after the last answer.
    stream.write({ correlation_id, request: expected.request });
    const { value } = await results.next();
    assert.equal(value.correlation_id, correlation_id);
    checkResult(value, expected, revision);
  }
  stream.end();
  assert.equal((await results.next()).done, true);
});

test('every kind of value is decoded', async (t) => {
  const { policy, request } = cases.every_kind;
  const directory = await temporaryDirectory(t);
  await writeFile(join(directory, 'kinds.cedar'), policy.join('\n'));
  const client = connect(t, AuthorizationService, await serve(t, directory));
  const answer = await call(client, 'Authorize', request);
  assert.deepEqual(answer.errors, []);
  assert.equal(answer.decision, 'DECISION_ALLOW');
});

test('Unix socket is served', async (t) => {
  const [expected] = cases.answers;
  const listen = `unix:${join(await temporaryDirectory(t), 'pdp.sock')}`;
  const client = connect(t, AuthorizationService, await serve(t, 'policies', { listen }));
  checkAnswer(await call(client, 'Authorize', expected.request), expected, revision);
});

test('Node example', async () => {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['examples/node/authorize.mjs', address],
    { cwd: root },
  );
  const expected = cases.example_output.join('\n').replaceAll('{revision}', revision);
  assert.equal(stdout.trimEnd(), expected);
});
