/* Part of MemQ. SPDX-License-Identifier: Apache-2.0 */
/* One socket, plain or with TLS. Never blocks but in mq_transport_open, and never raises SIGPIPE. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* --- addresses */

static char *copy_text(const char *text, size_t size) {
  char *copy = malloc(size + 1);
  if (copy == NULL) return NULL;
  memcpy(copy, text, size);
  copy[size] = 0;
  return copy;
}

void mq_address_free(mq_address *address) {
  free(address->name);
  free(address->host);
  free(address->port);
  free(address->path);
  *address = (mq_address){0};
}

static bool is_port(const char *text) {
  char *end;
  if (text[0] < '0' || text[0] > '9') return false;
  unsigned long port = strtoul(text, &end, 10);
  return *end == 0 && port > 0 && port < 65536;
}

bool mq_address_parse(mq_address *address, const char *text, size_t size, memq_error *error) {
  *address = (mq_address){0};
  address->name = copy_text(text, size);
  if (address->name == NULL) {
    mq_fail_memory(error);
    return false;
  }
  bool is_known = true, has_memory = true;
  if (size > 5 && strncmp(text, "unix:", 5) == 0) {
    address->path = copy_text(text + 5, size - 5);
    has_memory = address->path != NULL;
    is_known = size - 5 < sizeof(((struct sockaddr_un *)0)->sun_path);
  } else {
    const char *colon = memrchr(text, ':', size);
    const char *host = text, *host_end = colon;
    is_known = colon != NULL && colon > text;
    if (is_known && text[0] == '[') {
      is_known = colon[-1] == ']';
      host++;
      host_end--;
    } else if (is_known) {
      is_known = memchr(text, ':', (size_t)(colon - text)) == NULL;
    }
    is_known = is_known && host < host_end;
    if (is_known) {
      address->host = copy_text(host, (size_t)(host_end - host));
      address->port = copy_text(colon + 1, (size_t)(text + size - colon - 1));
      has_memory = address->host != NULL && address->port != NULL;
      is_known = has_memory && is_port(address->port);
    }
  }
  if (has_memory && is_known) return true;
  if (has_memory) {
    mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, address->name, "not an address: host:port, [ipv6]:port or unix:/path is wanted");
  } else {
    mq_fail_memory(error);
  }
  mq_address_free(address);
  return false;
}

/* --- TLS: a BIO over send() with MSG_NOSIGNAL */

static int bio_write(BIO *bio, const char *bytes, int size) {
  int fd = (int)(intptr_t)BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  ssize_t count = send(fd, bytes, (size_t)size, MSG_NOSIGNAL);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return (int)count;
}

static int bio_read(BIO *bio, char *bytes, int size) {
  int fd = (int)(intptr_t)BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  ssize_t count = recv(fd, bytes, (size_t)size, 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  if (count == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return (int)count;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
  (void)number;
  (void)pointer;
  switch (command) {
    case BIO_CTRL_FLUSH: return 1;
    case BIO_CTRL_EOF: return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
    default: return 0;
  }
}

/* The newest reason in this thread's queue of OpenSSL's errors, which is emptied. */
static const char *tls_reason(char *text, size_t size) {
  unsigned long number = ERR_peek_last_error();
  const char *reason = number != 0 ? ERR_reason_error_string(number) : NULL;
  if (reason != NULL) {
    snprintf(text, size, "%s", reason);
  } else {
    snprintf(text, size, "unknown reason");
  }
  ERR_clear_error();
  return text;
}

/* Called when a server asks for a certificate and none was given. */
static int on_certificate_wanted(SSL *ssl, X509 **certificate, EVP_PKEY **key) {
  (void)certificate;
  (void)key;
  mq_transport *transport = SSL_get_app_data(ssl);
  transport->lacks_certificate = true;
  return 0;
}

static memq_code load_tls(SSL_CTX *context, const memq_client_options *options, memq_error *error) {
  char reason[200];
  if (options->tls_ca_file != NULL) {
    if (SSL_CTX_load_verify_file(context, options->tls_ca_file) != 1)
      return mq_fail(error, MEMQ_ERROR_LOCAL_FILE, options->tls_ca_file, "no certificates of authorities can be read: %s",
                     tls_reason(reason, sizeof(reason)));
  } else if (SSL_CTX_set_default_verify_paths(context) != 1) {
    return mq_fail(error, MEMQ_ERROR_TLS, NULL, "the system's authorities cannot be read: %s", tls_reason(reason, sizeof(reason)));
  }
  if (options->tls_certificate_file == NULL) return MEMQ_OK;
  if (SSL_CTX_use_certificate_chain_file(context, options->tls_certificate_file) != 1)
    return mq_fail(error, MEMQ_ERROR_LOCAL_FILE, options->tls_certificate_file, "no certificate can be read: %s",
                   tls_reason(reason, sizeof(reason)));
  if (SSL_CTX_use_PrivateKey_file(context, options->tls_key_file, SSL_FILETYPE_PEM) != 1)
    return mq_fail(error, MEMQ_ERROR_LOCAL_FILE, options->tls_key_file, "no key of this certificate can be read: %s",
                   tls_reason(reason, sizeof(reason)));
  if (SSL_CTX_check_private_key(context) != 1)
    return mq_fail(error, MEMQ_ERROR_TLS, options->tls_key_file, "the key is not the certificate's: %s", tls_reason(reason, sizeof(reason)));
  return MEMQ_OK;
}

memq_code mq_tls_context(const memq_client_options *options, SSL_CTX **out, BIO_METHOD **method, memq_error *error) {
  static const unsigned char protocols[] = {2, 'h', '2'};
  if ((options->tls_certificate_file == NULL) != (options->tls_key_file == NULL))
    return mq_fail(error, MEMQ_ERROR_INVALID_ARGUMENT, options->tls_certificate_file != NULL ? "tls_key_file" : "tls_certificate_file",
                   "a client's certificate and its key are given together");
  ERR_clear_error();
  *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | 127, "memq socket");
  SSL_CTX *context = SSL_CTX_new(TLS_client_method());
  memq_code code = MEMQ_OK;
  if (*method == NULL || context == NULL) {
    code = mq_fail_memory(error);
  } else {
    BIO_meth_set_write(*method, bio_write);
    BIO_meth_set_read(*method, bio_read);
    BIO_meth_set_ctrl(*method, bio_control);
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_client_cert_cb(context, on_certificate_wanted);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
    code = SSL_CTX_set_alpn_protos(context, protocols, sizeof(protocols)) == 0 ? load_tls(context, options, error) : mq_fail_memory(error);
  }
  if (code != MEMQ_OK) {
    SSL_CTX_free(context);
    BIO_meth_free(*method);
    *method = NULL;
    return code;
  }
  *out = context;
  return MEMQ_OK;
}

/* What is wrong with a session, from the check of the certificate when that is it. */
static memq_code fail_tls(SSL *ssl, const char *name, int number, memq_error *error) {
  long verdict = SSL_get_verify_result(ssl);
  char reason[200];
  if (verdict != X509_V_OK) {
    mq_fail(error, MEMQ_ERROR_TLS, name, "the server's certificate is refused: %s", X509_verify_cert_error_string(verdict));
  } else if (number == SSL_ERROR_SYSCALL && ERR_peek_error() == 0) {
    mq_fail(error, MEMQ_ERROR_UNAVAILABLE, name, "the connection broke in the TLS handshake: %s",
            errno != 0 ? strerror(errno) : "closed by the server");
  } else {
    mq_fail(error, MEMQ_ERROR_TLS, name, "no TLS session: %s", tls_reason(reason, sizeof(reason)));
  }
  ERR_clear_error();
  return error->code;
}

/* --- connecting */

/* Waits for a socket, an interruption or the deadline. */
static memq_code wait_for(int fd, short events, int64_t deadline, const mq_interrupt *interrupt, const char *name, memq_error *error) {
  while (true) {
    if (interrupt->is_over(interrupt->argument)) return mq_fail(error, MEMQ_ERROR_CANCELLED, name, "the client was closed");
    int64_t left = deadline - mq_now();
    if (left <= 0) return mq_fail(error, MEMQ_ERROR_UNAVAILABLE, name, "cannot connect: no answer in time");
    struct pollfd polls[2] = {{.fd = fd, .events = events}, {.fd = interrupt->fd, .events = POLLIN}};
    int64_t ms = left / MQ_MS + 1;
    if (poll(polls, 2, ms > 60000 ? 60000 : (int)ms) < 0 && errno != EINTR)
      return mq_fail(error, MEMQ_ERROR_UNAVAILABLE, name, "cannot connect: %s", strerror(errno));
    if (polls[1].revents != 0) {
      /* Calls that begin meanwhile wake us as well; they are looked at when the connection stands. */
      uint64_t count;
      if (read(interrupt->fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        return mq_fail(error, MEMQ_ERROR_INTERNAL_ERROR, name, "eventfd: %s", strerror(errno));
    }
    if (polls[0].revents != 0) return MEMQ_OK;
  }
}

static memq_code connect_to(mq_transport *transport, const struct sockaddr *to, socklen_t size, int64_t deadline, const mq_interrupt *interrupt,
                            const char *name, memq_error *error) {
  int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return mq_fail(error, MEMQ_ERROR_UNAVAILABLE, name, "cannot connect: %s", strerror(errno));
  transport->fd = fd;
  int number = connect(fd, to, size) == 0 ? 0 : errno;
  if (number == EINPROGRESS) {
    memq_code code = wait_for(fd, POLLOUT, deadline, interrupt, name, error);
    if (code != MEMQ_OK) return code;
    socklen_t length = sizeof(number);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &number, &length) != 0) number = errno;
  }
  if (number != 0) return mq_fail(error, MEMQ_ERROR_UNAVAILABLE, name, "cannot connect: %s", strerror(number));
  if (to->sa_family != AF_UNIX) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  return MEMQ_OK;
}

static memq_code shake_hands(mq_transport *transport, SSL_CTX *tls, BIO_METHOD *method, const char *expected, int64_t deadline,
                             const mq_interrupt *interrupt, const char *name, memq_error *error) {
  ERR_clear_error();
  SSL *ssl = transport->ssl = SSL_new(tls);
  BIO *bio = ssl != NULL ? BIO_new(method) : NULL;
  if (bio == NULL) return mq_fail_memory(error);
  BIO_set_data(bio, (void *)(intptr_t)transport->fd);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl, bio, bio);
  SSL_set_app_data(ssl, transport);
  unsigned char number[sizeof(struct in6_addr)];
  bool is_ip = inet_pton(AF_INET, expected, number) == 1 || inet_pton(AF_INET6, expected, number) == 1;
  bool is_set = is_ip ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), expected) == 1
                      : SSL_set_tlsext_host_name(ssl, expected) == 1 && SSL_set1_host(ssl, expected) == 1;
  SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  if (!is_set) return mq_fail(error, MEMQ_ERROR_TLS, name, "%s is no name a certificate can have", expected);
  while (true) {
    ERR_clear_error();
    errno = 0;
    int result = SSL_connect(ssl);
    if (result == 1) break;
    int reason = SSL_get_error(ssl, result);
    if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) return fail_tls(ssl, name, reason, error);
    memq_code code = wait_for(transport->fd, reason == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline, interrupt, name, error);
    if (code != MEMQ_OK) return code;
  }
  const unsigned char *protocol;
  unsigned length;
  SSL_get0_alpn_selected(ssl, &protocol, &length);
  if (length != 2 || memcmp(protocol, "h2", 2) != 0)
    return mq_fail(error, MEMQ_ERROR_TLS, name, "the server speaks TLS, but not HTTP/2 (ALPN)");
  return MEMQ_OK;
}

memq_code mq_transport_open(mq_transport *transport, const mq_address *address, SSL_CTX *tls, BIO_METHOD *method, const char *server_name,
                            int64_t timeout_ms, const mq_interrupt *interrupt, memq_error *error) {
  *transport = (mq_transport){.fd = -1};
  int64_t deadline = mq_after_ms(mq_now(), timeout_ms);
  memq_code code;
  if (address->path != NULL) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof(to.sun_path), "%s", address->path);
    code = connect_to(transport, (const struct sockaddr *)&to, sizeof(to), deadline, interrupt, address->name, error);
  } else {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG | AI_NUMERICSERV}, *found = NULL;
    /* AI_ADDRCONFIG does not count loopback: without it a machine that has nothing else finds no numeric address. */
    int number = getaddrinfo(address->host, address->port, &hints, &found);
    if (number != 0) {
      hints.ai_flags = AI_NUMERICSERV;
      number = getaddrinfo(address->host, address->port, &hints, &found);
    }
    if (number != 0)
      return mq_fail(error, MEMQ_ERROR_UNAVAILABLE, address->name, "cannot connect: %s",
                     number == EAI_SYSTEM ? strerror(errno) : gai_strerror(number));
    code = mq_fail(error, MEMQ_ERROR_UNAVAILABLE, address->name, "cannot connect: the name has no address");
    /* A slow look-up, which cannot be cut short, leaves as much time for the connection. */
    deadline = mq_after_ms(mq_now(), timeout_ms);
    for (struct addrinfo *next = found; next != NULL && code != MEMQ_OK && code != MEMQ_ERROR_CANCELLED; next = next->ai_next) {
      mq_transport_close(transport);
      /* Time for those that follow. */
      int64_t end = next->ai_next != NULL ? mq_now() + (deadline - mq_now()) / 2 : deadline;
      code = connect_to(transport, next->ai_addr, next->ai_addrlen, end, interrupt, address->name, error);
    }
    freeaddrinfo(found);
  }
  if (code == MEMQ_OK && tls != NULL) {
    const char *expected = server_name != NULL ? server_name : address->host != NULL ? address->host : "localhost";
    code = shake_hands(transport, tls, method, expected, deadline, interrupt, address->name, error);
  }
  if (code != MEMQ_OK) mq_transport_close(transport);
  return code;
}

/* --- bytes */

static ssize_t tls_result(mq_transport *transport, int result, memq_error *error) {
  int reason = SSL_get_error(transport->ssl, result);
  char text[200];
  switch (reason) {
    case SSL_ERROR_WANT_READ: transport->wants_read = true; return 0;
    case SSL_ERROR_WANT_WRITE: transport->wants_write = true; return 0;
    case SSL_ERROR_ZERO_RETURN: mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the server closed the connection"); break;
    case SSL_ERROR_SYSCALL:
      mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the connection broke: %s", errno != 0 ? strerror(errno) : "closed without a goodbye");
      break;
    default: {
      unsigned long number = ERR_peek_last_error();
      bool is_alert = ERR_GET_LIB(number) == ERR_LIB_SSL && ERR_GET_REASON(number) >= SSL_AD_REASON_OFFSET &&
                      ERR_GET_REASON(number) < SSL_AD_REASON_OFFSET + 256;
      mq_fail(error, is_alert ? MEMQ_ERROR_TLS : MEMQ_ERROR_UNAVAILABLE, NULL, "%s: %s",
              is_alert ? "the server ended the TLS session" : "the connection broke", tls_reason(text, sizeof(text)));
      break;
    }
  }
  ERR_clear_error();
  /* With TLS 1.3 a server judges the client's certificate after the handshake; some say nothing then and close. */
  if (!transport->has_heard && transport->lacks_certificate)
    mq_fail(error, MEMQ_ERROR_TLS, NULL, "the server wants a client's certificate, and none was given");
  return -1;
}

ssize_t mq_transport_read(mq_transport *transport, void *buffer, size_t size, memq_error *error) {
  transport->wants_write = false;
  errno = 0;
  if (transport->ssl != NULL) {
    ERR_clear_error();
    int count = SSL_read(transport->ssl, buffer, size > INT32_MAX ? INT32_MAX : (int)size);
    if (count > 0) transport->has_heard = true;
    return count > 0 ? count : tls_result(transport, count, error);
  }
  ssize_t count = recv(transport->fd, buffer, size, 0);
  if (count > 0) return count;
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the connection broke: %s", count < 0 ? strerror(errno) : "closed by the server");
  return -1;
}

ssize_t mq_transport_write(mq_transport *transport, const void *bytes, size_t size, memq_error *error) {
  transport->wants_read = false;
  errno = 0;
  if (transport->ssl != NULL) {
    ERR_clear_error();
    int count = SSL_write(transport->ssl, bytes, size > INT32_MAX ? INT32_MAX : (int)size);
    return count > 0 ? count : tls_result(transport, count, error);
  }
  ssize_t count = send(transport->fd, bytes, size, MSG_NOSIGNAL);
  if (count >= 0) return count;
  if (errno == EAGAIN || errno == EINTR) return 0;
  mq_fail(error, MEMQ_ERROR_UNAVAILABLE, NULL, "the connection broke: %s", strerror(errno));
  return -1;
}

bool mq_transport_has_pending(const mq_transport *transport) { return transport->ssl != NULL && SSL_pending(transport->ssl) > 0; }

void mq_transport_close(mq_transport *transport) {
  if (transport->ssl != NULL) {
    ERR_clear_error();
    /* A goodbye where there is room for one; nobody waits for the answer. */
    if (SSL_is_init_finished(transport->ssl)) SSL_shutdown(transport->ssl);
    SSL_free(transport->ssl);
    ERR_clear_error();
  }
  if (transport->fd >= 0) close(transport->fd);
  *transport = (mq_transport){.fd = -1};
}
