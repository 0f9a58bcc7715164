// Asks a running cedar-pdp for decisions. Takes its address; by default 127.0.0.1:50051.

import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const root = (directory) => fileURLToPath(new URL(`../../${directory}`, import.meta.url));
const definitions = protoLoader.loadSync(
  ['pdp/v1/authorization.proto', 'google/rpc/error_details.proto'],
  {
    includeDirs: [root('proto'), root('third_party')],
    keepCase: true, // determining_policies, as in the .proto file, not determiningPolicies
    enums: String, // 'DECISION_ALLOW', not 1
    longs: String, // a JavaScript number holds only 53 of the 64 bits
    defaults: true, // an empty list rather than none
    oneofs: true, // in batches and streams: which of response and error is set
  },
);
const { AuthorizationService } = grpc.loadPackageDefinition(definitions).pdp.v1;
const decode = (type, bytes) => definitions[type].deserialize(bytes);

// An undefined id is not sent, and rejected. An empty one is sent, because '' is a valid id.
const user = (id) => ({ type: 'Platform::User', id });
const action = (id) => ({ type: 'Invoicing::Action', id });
const invoice = (id) => ({ type: 'Invoicing::Invoice', id });

const client = new AuthorizationService(
  process.argv[2] ?? '127.0.0.1:50051',
  grpc.credentials.createInsecure(),
);

function authorize(request) {
  // A call without a deadline waits forever.
  const deadline = Date.now() + 5_000;
  return new Promise((resolve, reject) => {
    client.authorize(request, { deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

/** Returns the fields of the request that an error names. */
function invalidFields(error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  if (!bytes) return [];
  return decode('google.rpc.Status', bytes)
    .details.filter(({ type_url }) => type_url === 'type.googleapis.com/google.rpc.BadRequest')
    .flatMap(({ value }) => decode('google.rpc.BadRequest', value).field_violations)
    .map(({ field }) => field);
}

/** Sends a request, and prints the answer, or the invalid field. */
async function printAnswer(title, request) {
  console.log(`${title}:`);
  try {
    const answer = await authorize(request);
    // In your own code: proceed only if answer.decision === 'DECISION_ALLOW'.
    console.log(`  ${answer.decision}`);
    console.log(`  determined by: ${answer.determining_policies.join(', ') || 'no policy'}`);
    console.log(`  revision: ${answer.revision}`);
  } catch (error) {
    if (!(error.metadata instanceof grpc.Metadata)) throw error; // not from the call
    console.log(`  ${grpc.status[error.code]}: ${error.details}`);
    for (const field of invalidFields(error)) console.log(`  the field at fault: ${field}`);
  }
}

const approve = {
  principal: user('marta.okafor'),
  action: action('approveInvoice'),
  resource: invoice('INV-2043'),
};
await printAnswer('Marta approves a large invoice', approve);

// A context value names its Cedar type. A long that may exceed 53 bits is sent as a string.
await printAnswer('Marta does so with a second factor', {
  ...approve,
  context: { mfa: { bool: true } },
});

// No principal: the service must have been started with --anonymous-principal. A misspelt or
// undefined field is dropped silently, so it has the same effect.
await printAnswer('Anyone reads the price list', {
  action: action('readPriceList'),
  resource: { type: 'Invoicing::PriceList', id: '2026-standard' },
});

await printAnswer('Felix reads an invoice without an id', {
  principal: user('felix.brandt'),
  action: action('readInvoice'),
  resource: invoice(undefined),
});

client.close();
