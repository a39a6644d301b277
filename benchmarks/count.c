/* A QEMU plugin that counts guest instructions: qemu-aarch64 -plugin ./count.so -d plugin PROGRAM
 * prints "instructions N" on stderr when the program ends.
 *
 * QEMU's header is not packaged, so what is used of it is declared here (qemu-plugin.h, stable from
 * QEMU 4.2; PLUGIN_VERSION is the interface's number, of which a QEMU takes a range).
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct qemu_plugin_tb;
typedef uint64_t qemu_plugin_id_t;

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t,
                                                            struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block,
                                          void (*callback)(unsigned, void *), int flags,
                                          void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id,
                                    void (*callback)(qemu_plugin_id_t, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_outs(const char *text);

#define EXPORT __attribute__((visibility("default")))

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int count, char **arguments);
extern int qemu_plugin_version;
EXPORT int qemu_plugin_version = PLUGIN_VERSION;

static uint64_t instructions; /* programs of one thread only */

static void on_execution(unsigned cpu, void *length)
{
    (void)cpu;
    instructions += (uintptr_t)length;
}

/* A translated block is executed from its first instruction to its last, unless one faults. */
static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    uintptr_t length = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_execution, 0, (void *)length);
}

static void on_exit(qemu_plugin_id_t id, void *data)
{
    char text[64];
    (void)id;
    (void)data;
    snprintf(text, sizeof text, "instructions %" PRIu64 "\n", instructions);
    qemu_plugin_outs(text);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int count, char **arguments)
{
    (void)info;
    (void)count;
    (void)arguments;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit, NULL);
    return 0;
}
