/* A Modbus server on libmodbus for the tests of package driver.
 *
 *   libmodbus tcp          prints the port it listens on, serves one client after the other
 *   libmodbus rtu PATH     serves on a serial port as unit 17
 *   libmodbus read PORT N  reads 100 holding registers N times as fast as it can;
 *                          prints requests a second and microseconds of CPU a request
 *
 * Register or bit a of a table holds what truth() says; addresses from 1000
 * on do not exist. It ends when its standard input is closed.
 */
#include <errno.h>
#include <modbus.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 1000 };

static uint16_t truth(int table, int a) { return (uint16_t)(table * 7919 + a * 257 + 3); }

static void fill(modbus_mapping_t *m)
{
    for (int a = 0; a < SIZE; a++) {
        m->tab_bits[a] = truth(1, a) % 3 == 0;
        m->tab_input_bits[a] = truth(2, a) % 3 == 0;
        m->tab_registers[a] = truth(3, a);
        m->tab_input_registers[a] = truth(4, a);
    }
}

/* Serves until the peer or the standard input goes. Returns 0 at the end. */
static int serve(modbus_t *ctx, modbus_mapping_t *m)
{
    uint8_t q[MODBUS_TCP_MAX_ADU_LENGTH];
    for (;;) {
        struct pollfd p[2] = {{.fd = 0, .events = POLLIN}, {.fd = modbus_get_socket(ctx), .events = POLLIN}};
        if (poll(p, 2, -1) < 0)
            return 0;
        if (p[0].revents)
            return 0;
        int n = modbus_receive(ctx, q);
        if (n > 0)
            modbus_reply(ctx, q, n, m);
        else if (n < 0 && (errno == ECONNRESET || errno == EBADF || errno == EIO))
            return 1;
    }
}

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec * 1e-6; }

static int read_fast(int port, int n)
{
    uint16_t regs[100];
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", port);
    if (!ctx || modbus_set_slave(ctx, 17) || modbus_connect(ctx)) {
        fprintf(stderr, "%s\n", modbus_strerror(errno));
        return 1;
    }
    struct timespec a, b;
    struct rusage ra, rb;
    getrusage(RUSAGE_SELF, &ra);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < n; i++)
        if (modbus_read_registers(ctx, 0, 100, regs) != 100 || regs[99] != truth(3, 99)) {
            fprintf(stderr, "read %d: %s\n", i, modbus_strerror(errno));
            return 1;
        }
    clock_gettime(CLOCK_MONOTONIC, &b);
    getrusage(RUSAGE_SELF, &rb);
    double cpu = seconds(rb.ru_utime) + seconds(rb.ru_stime) - seconds(ra.ru_utime) - seconds(ra.ru_stime);
    printf("%f %f\n", n / (b.tv_sec - a.tv_sec + (b.tv_nsec - a.tv_nsec) * 1e-9), cpu * 1e6 / n);
    modbus_free(ctx);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "read") == 0)
        return read_fast(atoi(argv[2]), atoi(argv[3]));
    modbus_mapping_t *m = modbus_mapping_new(SIZE, SIZE, SIZE, SIZE);
    if (!m || argc < 2)
        return 2;
    fill(m);
    if (argc == 3 && strcmp(argv[1], "rtu") == 0) {
        modbus_t *ctx = modbus_new_rtu(argv[2], 115200, 'N', 8, 1);
        if (!ctx || modbus_set_slave(ctx, 17) || modbus_connect(ctx)) {
            fprintf(stderr, "%s\n", modbus_strerror(errno));
            return 1;
        }
        puts("ready");
        fflush(stdout);
        serve(ctx, m);
        return 0;
    }
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", 0);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    if (!ctx || s < 0 || bind(s, (struct sockaddr *)&sa, sizeof sa) || listen(s, 4) || getsockname(s, (struct sockaddr *)&sa, &len)) {
        perror("libmodbus");
        return 1;
    }
    printf("%d\n", ntohs(sa.sin_port));
    fflush(stdout);
    for (;;) {
        struct pollfd p[2] = {{.fd = 0, .events = POLLIN}, {.fd = s, .events = POLLIN}};
        if (poll(p, 2, -1) < 0 || p[0].revents)
            return 0;
        if (modbus_tcp_accept(ctx, &s) < 0)
            return 1;
        if (!serve(ctx, m))
            return 0;
        modbus_close(ctx);
    }
}
