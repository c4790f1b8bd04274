package relay

// Example is a configuration with every section, for `countersign relay config example`. ParseConfig takes it.
func Example() string {
	return `# The relay beside the service orders. What is commented out is the default, or another way.
identity:
  dir: /var/lib/countersign/orders   # made by countersign join --out; the relay renews it
  # readonly: true                   # an agent renews it
  # join_file: /run/secrets/join     # a join string, for the first certificate
# server: https://ca.shop.internal:8443   # the daemon; default: what the identity names
# issuer: https://ca.shop.internal:8443   # of relay tokens; default: server

app:                                 # one of the two:
  socket: /run/orders/app.sock       # its directory says who may connect
  # url: http://127.0.0.1:8080       # with a secret that the application compares
  # secret_file: /run/orders/relay.env
  # token: handle                    # authorization: the application gets the token too
  # linger: 0s                       # how long handle and token are good after the answer

internal:                            # services of the call graph, by mTLS
  listen: ":8443"
  routes:
    - name: read
      methods: [GET]
      path: "/orders/{rest...}"
      scopes: [orders:read]
    - name: write
      methods: [POST]
      path: /orders
      scopes: [orders:write]
      content_types: [application/json]
      body: 64KiB
      rate: {key: user, replenish_rate: 10, burst: 20}

# public:                            # users from outside: a gateway has this
#   listen: ":443"
#   tls: {cert: /etc/tls/shop.crt, key: /etc/tls/shop.key}
#   users: {issuer: https://idp.shop.example, audiences: [shop-web]}
#   routes:
#     - {name: orders, methods: [GET, POST], path: "/api/orders/{rest...}", strip: /api, to: inventory, scopes: [shop.read]}

outbound:                            # the application calls http://127.0.0.1:9001, and means inventory
  - name: inventory
    url: https://inventory.shop.internal:8443
    listen: 127.0.0.1:9001           # or unix:/run/orders/inventory.sock
    # scopes: [stock:read]           # default: all that the policy allows
    # machine: false                 # true: calls without a user go out as orders itself

ops:
  listen: 127.0.0.1:8445             # /livez /readyz /metrics
# drain: 10s                         # for requests in flight after SIGTERM
# log: {level: info, format: text}
`
}
