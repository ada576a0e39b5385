/* graft/graft.h - the main path of graft in plain C, for other languages to bind: plan a
 * conversion, convert and save, load, run. The C++ interface is graft/host.h.
 *
 * Every function that returns int gives GRAFT_DONE or why it failed, the exit code that the program
 * `graft` would end with, and then a sentence in `message`: at most message_size bytes with the
 * terminating zero, cut where it is longer; message may be NULL. Nothing throws or ends the
 * process. Text is UTF-8. Functions may be called from any thread; one model runs in one thread at
 * a time.
 *
 * `options` is NULL or a JSON object; all members are optional:
 *   plugins                     files to load, before those that are found
 *   plugin_path, registry       folders with plugins; rule files
 *   strict                      what is unknown, unmatched or unexpected is an error
 *   quantization_config         what to make of a dense model, as in config.json
 *   dtype                       "float32", "bfloat16" or "float16": of what stays dense
 *   ignore_quantization_config  load as if the folder had none
 */
#ifndef GRAFT_GRAFT_H
#define GRAFT_GRAFT_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define GRAFT_C_API __attribute__((visibility("default")))

enum {
  GRAFT_DONE = 0,
  GRAFT_ERROR_USAGE = 1,        /* the call is wrong */
  GRAFT_ERROR_MODEL = 2,        /* a model, config or data file is invalid */
  GRAFT_ERROR_PLUGIN = 3,       /* a plugin or the registry is at fault */
  GRAFT_ERROR_RESOURCE = 4,     /* memory, disk, permission */
  GRAFT_ERROR_QUALITY = 5,      /* a quality gate failed */
  GRAFT_ERROR_COVERAGE = 6,     /* coverage incomplete under strict */
  GRAFT_ERROR_DEFECT = 70,      /* a defect in graft */
  GRAFT_ERROR_INTERRUPTED = 130 /* progress returned 0 */
};

/* Called from the thread that made the call, during it. Functions may be NULL, and so may a pointer
 * to all of it. */
typedef struct graft_callbacks {
  void* self; /* first argument of both */
  /* level: 0 error, 1 warning, 2 info, 3 debug */
  void (*log)(void* self, int32_t level, const char* component, const char* message);
  /* total is 0 when unknown; return 0 to stop */
  int32_t (*progress)(void* self, const char* stage, uint64_t done, uint64_t total);
} graft_callbacks;

typedef struct graft_model graft_model;

/* "0.1.0"; lives as long as the process. */
GRAFT_C_API const char* graft_version(void);

/* The plan of what load or convert would do, without reading a weight: JSON as of `graft plan
 * --json` (docs/cli.md). Free *json with graft_free_text. */
GRAFT_C_API int graft_plan(const char* folder, const char* options,
                           const graft_callbacks* callbacks, char** json, char* message,
                           size_t message_size);

/* Converts the model in `folder` and writes a complete folder `output`, or nothing. */
GRAFT_C_API int graft_convert(const char* folder, const char* options,
                              const graft_callbacks* callbacks, const char* output, char* message,
                              size_t message_size);

/* Loads the model in `folder`, converting it on the way. Free *model with graft_free_model. */
GRAFT_C_API int graft_load(const char* folder, const char* options,
                           const graft_callbacks* callbacks, graft_model** model, char* message,
                           size_t message_size);

/* Elements of the last dimension of what forward gives: the vocabulary, or the hidden size of an
 * encoder. */
GRAFT_C_API int64_t graft_output_width(const graft_model* model);

/* Runs `ids`, [batch, tokens] row-major, through the model and writes logits or hidden states,
 * [batch, tokens, width] float32, to `output`, which holds output_size elements. */
GRAFT_C_API int graft_forward(graft_model* model, const int64_t* ids, int64_t batch, int64_t tokens,
                              float* output, size_t output_size, char* message,
                              size_t message_size);

GRAFT_C_API void graft_free_model(graft_model* model);
GRAFT_C_API void graft_free_text(char* text);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* GRAFT_GRAFT_H */
