#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/cuda_emulator/matrix.h"
#include "tests/support/cuda_emulator/sanitizers.h"
#include "tests/support/cuda_emulator/state.h"

// Descriptors are plain structs inside the opaque words; the first word says what they are and whether they live.
namespace emu {
namespace {

constexpr std::uint64_t kLayoutMark = 0x4c41594f55543031, kDescMark = 0x4445534330303031,
                        kPrefMark = 0x5052454630303031, kAlgoMark = 0x414c474f30303031;

struct Desc {
  std::uint64_t mark = kDescMark;
  int compute = 0, scale = 0, pointer_mode = 0, transa = 0, transb = 0, transc = 0,
      epilogue = CUBLASLT_EPILOGUE_DEFAULT;
};
struct Pref {
  std::uint64_t mark = kPrefMark, workspace = 0;
  unsigned reductions = CUBLASLT_REDUCTION_SCHEME_MASK, align[4] = {256, 256, 256, 256};
};
struct Algo {
  std::uint64_t mark = kAlgoMark, problem = 0, workspace = 0;
  unsigned align[4] = {};
};
static_assert(sizeof(Matrix) <= sizeof(cublasLtMatrixLayoutOpaque_t) &&
              sizeof(Desc) <= sizeof(cublasLtMatmulDescOpaque_t) &&
              sizeof(Pref) <= sizeof(cublasLtMatmulPreferenceOpaque_t) && sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t));

cublasStatus_t wrong(const std::string& what, cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE) {
  report("cuBLASLt: " + what);
  return status;
}

/// Descriptors and handles that were made, and not destroyed.
std::set<const void*>& made() {
  static auto& all = *new std::set<const void*>;
  return all;
}

template <typename T, typename Opaque>
bool get(T& to, const Opaque* from, std::uint64_t mark) {
  constexpr bool kMade = !std::is_same_v<Opaque, cublasLtMatmulAlgo_t>;
  const std::lock_guard guard(lock());
  if (from == nullptr || (kMade && !made().contains(from)) || from->data[0] != mark) return false;
  std::memcpy(&to, from->data, sizeof(T));
  return true;
}
template <typename T, typename Opaque>
cublasStatus_t put(Opaque* to, const T& from) {
  std::memcpy(to->data, &from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}
template <typename T, typename Opaque>
cublasStatus_t create(Opaque** out, const T& value) {
  if (out == nullptr) return wrong("null instead of a place for a descriptor");
  *out = new Opaque{};
  const std::lock_guard guard(lock());
  made().insert(*out);
  return put(*out, value);
}
template <typename Opaque>
cublasStatus_t destroy(Opaque* x, std::uint64_t mark) {
  const std::lock_guard guard(lock());
  if (!made().contains(x) || x->data[0] != mark) return wrong("destroying what is no live descriptor");
  made().erase(x);
  delete x;
  return CUBLAS_STATUS_SUCCESS;
}
/// The attribute's value is as large as the field's.
template <typename T>
cublasStatus_t set(T& field, const void* buf, std::size_t bytes) {
  if (buf == nullptr || bytes != sizeof(T))
    return wrong("an attribute of " + std::to_string(bytes) + " bytes instead of " + std::to_string(sizeof(T)));
  std::memcpy(&field, buf, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

/// Everything about a product but its addresses.
struct Problem {
  Desc desc;
  Matrix a, b, c, d;
  std::int64_t m = 0, n = 0, k = 0;

  cublasStatus_t read(cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t la, cublasLtMatrixLayout_t lb,
                      cublasLtMatrixLayout_t lc, cublasLtMatrixLayout_t ld) {
    if (!get(desc, o, kDescMark)) return wrong("the operation's descriptor is null or destroyed");
    const std::pair<cublasLtMatrixLayout_t, Matrix*> all[] = {{la, &a}, {lb, &b}, {lc, &c}, {ld, &d}};
    for (int i = 0; i < 4; ++i) {
      Matrix& x = *all[i].second;
      if (!get(x, all[i].first, kLayoutMark))
        return wrong(std::string("the layout of ") + "ABCD"[i] + " is null or destroyed");
      if (x.rows <= 0 || x.cols <= 0 || x.rows > INT32_MAX || x.cols > INT32_MAX)
        return wrong(std::string(1, "ABCD"[i]) + " is " + std::to_string(x.rows) + " x " + std::to_string(x.cols));
      if (x.ld < x.length())
        return wrong(std::string("the leading dimension of ") + "ABCD"[i] + " is " + std::to_string(x.ld) +
                     ", but it has " + std::to_string(x.length()) +
                     (x.order == CUBLASLT_ORDER_COL ? " rows" : " columns"));
      if (x.batch < 1 || x.batch != a.batch) return wrong("the operands' batch counts differ");
    }
    if (d.batch > 1 && d.step < d.extent()) return wrong("the matrices of the batch overlap in D");
    if (desc.compute != CUBLAS_COMPUTE_32F && desc.compute != CUBLAS_COMPUTE_32F_PEDANTIC)
      return wrong("a compute type other than 32F", CUBLAS_STATUS_NOT_SUPPORTED);
    if (desc.scale != CUDA_R_32F || desc.pointer_mode != CUBLASLT_POINTER_MODE_HOST ||
        desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT || desc.transc != CUBLAS_OP_N)
      return wrong("a scale type, pointer mode, epilogue or transposition of C that is not known here",
                   CUBLAS_STATUS_NOT_SUPPORTED);
    const bool types = a.type == b.type && c.type == d.type &&
                       (a.type == CUDA_R_16BF ? d.type == CUDA_R_16BF || d.type == CUDA_R_32F
                                              : a.type == CUDA_R_32F && d.type == CUDA_R_32F);
    if (!types) return wrong("element types that cuBLASLt does not combine", CUBLAS_STATUS_NOT_SUPPORTED);
    m = desc.transa == CUBLAS_OP_N ? a.rows : a.cols;
    k = desc.transa == CUBLAS_OP_N ? a.cols : a.rows;
    n = desc.transb == CUBLAS_OP_N ? b.cols : b.rows;
    const std::int64_t kb = desc.transb == CUBLAS_OP_N ? b.rows : b.cols;
    const auto is = [&](const Matrix& x) { return x.rows == m && x.cols == n; };
    if (kb != k || !is(c) || !is(d))
      return wrong("op(A) is " + std::to_string(m) + " x " + std::to_string(k) + ", op(B) " + std::to_string(kb) +
                   " x " + std::to_string(n) + ", C " + std::to_string(c.rows) + " x " + std::to_string(c.cols) +
                   ", D " + std::to_string(d.rows) + " x " + std::to_string(d.cols));
    return CUBLAS_STATUS_SUCCESS;
  }

  /// An algorithm belongs to one problem.
  std::uint64_t fingerprint() const {
    std::uint64_t h = 14695981039346656037U;
    const auto add = [&](std::int64_t v) { h = (h ^ static_cast<std::uint64_t>(v)) * 1099511628211U; };
    add(desc.compute), add(desc.transa), add(desc.transb);
    for (const Matrix* x : {&a, &b, &c, &d})
      add(x->type), add(x->order), add(x->rows), add(x->cols), add(x->ld), add(x->batch), add(x->step);
    return h;
  }
};

cublasStatus_t check_memory(const Matrix& x, const void* p, const char* name, unsigned align) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (p == nullptr) return wrong(std::string(name) + " is null");
  if (static_cast<std::int64_t>(device_bytes_at(p)) < x.all_bytes())
    return wrong(std::string(name) + " needs " + std::to_string(x.all_bytes()) + " bytes of device memory, there are " +
                 std::to_string(device_bytes_at(p)));
  if (address % std::max<unsigned>(align, static_cast<unsigned>(x.size())) != 0)
    return wrong(std::string(name) + " is not aligned to " + std::to_string(align) + " bytes, as the algorithm needs");
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace emu

using namespace emu;

struct cublasLtContext {};
namespace {
bool lives(cublasLtHandle_t h) {
  const std::lock_guard guard(lock());
  return made().contains(h);
}
}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* lightHandle) {
  if (lightHandle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const std::lock_guard guard(lock());
  if (trouble() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  *lightHandle = new cublasLtContext;
  made().insert(*lightHandle);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t lightHandle) {
  const std::lock_guard guard(lock());
  if (made().erase(lightHandle) == 0) return wrong("destroying what is no live handle");
  delete lightHandle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* matLayout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t ld) {
  if (type != CUDA_R_32F && type != CUDA_R_16BF) return wrong("a matrix of another type than f32, bf16");
  return create(matLayout, Matrix{.mark = kLayoutMark,
                                  .rows = static_cast<std::int64_t>(rows),
                                  .cols = static_cast<std::int64_t>(cols),
                                  .ld = ld,
                                  .type = type});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matLayout) { return destroy(matLayout, kLayoutMark); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t matLayout, cublasLtMatrixLayoutAttribute_t attr,
                                                const void* buf, std::size_t sizeInBytes) {
  Matrix x;
  if (!get(x, matLayout, kLayoutMark)) return wrong("the layout is null or destroyed");
  cublasStatus_t s = CUBLAS_STATUS_NOT_SUPPORTED;
  switch (attr) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      s = set(x.type, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      s = set(x.order, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      s = set(x.rows, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      s = set(x.cols, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_LD:
      s = set(x.ld, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      s = set(x.batch, buf, sizeInBytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      s = set(x.step, buf, sizeInBytes);
      break;
  }
  if (s != CUBLAS_STATUS_SUCCESS) return s;
  if ((x.type != CUDA_R_32F && x.type != CUDA_R_16BF) ||
      (x.order != CUBLASLT_ORDER_COL && x.order != CUBLASLT_ORDER_ROW))
    return wrong("a type or order of a matrix that is not known here", CUBLAS_STATUS_NOT_SUPPORTED);
  return put(matLayout, x);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* matmulDesc, cublasComputeType_t computeType,
                                        cudaDataType_t scaleType) {
  return create(matmulDesc, Desc{.compute = computeType, .scale = scaleType});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t matmulDesc) { return destroy(matmulDesc, kDescMark); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t matmulDesc, cublasLtMatmulDescAttributes_t attr,
                                              const void* buf, std::size_t sizeInBytes) {
  Desc x;
  if (!get(x, matmulDesc, kDescMark)) return wrong("the operation's descriptor is null or destroyed");
  cublasStatus_t s = CUBLAS_STATUS_NOT_SUPPORTED;
  int unused = 0;
  switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      s = set(x.compute, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      s = set(x.scale, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      s = set(x.pointer_mode, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_TRANSA:
      s = set(x.transa, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
      s = set(x.transb, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_TRANSC:
      s = set(x.transc, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      s = set(x.epilogue, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      s = set(unused, buf, sizeInBytes);
      break;
  }
  if (s != CUBLAS_STATUS_SUCCESS) return s;
  for (const int t : {x.transa, x.transb, x.transc})
    if (t < CUBLAS_OP_N || t > CUBLAS_OP_C) return wrong("an operation on a matrix that is none");
  return put(matmulDesc, x);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* pref) { return create(pref, Pref{}); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) { return destroy(pref, kPrefMark); }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref,
                                                    cublasLtMatmulPreferenceAttributes_t attr, const void* buf,
                                                    std::size_t sizeInBytes) {
  Pref x;
  if (!get(x, pref, kPrefMark)) return wrong("the preferences are null or destroyed");
  cublasStatus_t s = CUBLAS_STATUS_NOT_SUPPORTED;
  switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      s = set(x.workspace, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      s = set(x.reductions, buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      s = set(x.align[0], buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      s = set(x.align[1], buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      s = set(x.align[2], buf, sizeInBytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      s = set(x.align[3], buf, sizeInBytes);
      break;
    default:
      return wrong("a preference that is not known here", CUBLAS_STATUS_NOT_SUPPORTED);
  }
  if (s != CUBLAS_STATUS_SUCCESS) return s;
  for (const unsigned a : x.align)
    if (!std::has_single_bit(a)) return wrong("an alignment that is no power of two");
  return put(pref, x);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t operationDesc,
                                              cublasLtMatrixLayout_t Adesc, cublasLtMatrixLayout_t Bdesc,
                                              cublasLtMatrixLayout_t Cdesc, cublasLtMatrixLayout_t Ddesc,
                                              cublasLtMatmulPreference_t preference, int requestedAlgoCount,
                                              cublasLtMatmulHeuristicResult_t heuristicResultsArray[],
                                              int* returnAlgoCount) {
  if (!lives(lightHandle)) return wrong("the handle is null or destroyed", CUBLAS_STATUS_NOT_INITIALIZED);
  if (requestedAlgoCount < 1 || heuristicResultsArray == nullptr || returnAlgoCount == nullptr)
    return wrong("no place for an algorithm");
  *returnAlgoCount = 0;
  Pref pref;
  if (!get(pref, preference, kPrefMark)) return wrong("the preferences are null or destroyed");
  Problem p;
  const cublasStatus_t s = p.read(operationDesc, Adesc, Bdesc, Cdesc, Ddesc);
  if (s != CUBLAS_STATUS_SUCCESS) return s;
  for (const unsigned align : pref.align)
    if (align < options().blas_alignment) return CUBLAS_STATUS_NOT_SUPPORTED;
  // Wants some of what it may have, so that a workspace that is too small or in use is seen.
  Algo algo{.problem = p.fingerprint(), .workspace = std::min<std::uint64_t>(pref.workspace, 4096)};
  std::copy_n(pref.align, 4, algo.align);
  cublasLtMatmulHeuristicResult_t& out = heuristicResultsArray[0];
  out = {};
  put(&out.algo, algo);
  out.workspaceSize = algo.workspace;
  out.state = CUBLAS_STATUS_SUCCESS;
  out.wavesCount = 1;
  *returnAlgoCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t lightHandle, cublasLtMatmulDesc_t computeDesc, const void* alpha,
                              const void* A, cublasLtMatrixLayout_t Adesc, const void* B, cublasLtMatrixLayout_t Bdesc,
                              const void* beta, const void* C, cublasLtMatrixLayout_t Cdesc, void* D,
                              cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              std::size_t workspaceSizeInBytes, cudaStream_t stream) {
  if (!lives(lightHandle)) return wrong("the handle is null or destroyed", CUBLAS_STATUS_NOT_INITIALIZED);
  if (alpha == nullptr || beta == nullptr) return wrong("alpha or beta is null");
  if (device_bytes_at(alpha) != 0 || device_bytes_at(beta) != 0) return wrong("alpha and beta are host memory");
  auto p = std::make_shared<Problem>();
  cublasStatus_t s = p->read(computeDesc, Adesc, Bdesc, Cdesc, Ddesc);
  Algo chosen;
  if (algo != nullptr &&
      (!get(chosen, algo, kAlgoMark) || (s == CUBLAS_STATUS_SUCCESS && chosen.problem != p->fingerprint())))
    return wrong("the algorithm was chosen for another problem");
  if (s == CUBLAS_STATUS_SUCCESS) s = check_memory(p->a, A, "A", chosen.align[0]);
  if (s == CUBLAS_STATUS_SUCCESS) s = check_memory(p->b, B, "B", chosen.align[1]);
  if (s == CUBLAS_STATUS_SUCCESS) s = check_memory(p->c, C, "C", chosen.align[2]);
  if (s == CUBLAS_STATUS_SUCCESS) s = check_memory(p->d, D, "D", chosen.align[3]);
  if (s != CUBLAS_STATUS_SUCCESS) return s;
  if (workspaceSizeInBytes < chosen.workspace)
    return wrong("a workspace of " + std::to_string(workspaceSizeInBytes) + " bytes, the algorithm needs " +
                 std::to_string(chosen.workspace));
  if (workspaceSizeInBytes > 0 &&
      (reinterpret_cast<std::uintptr_t>(workspace) % 16 != 0 || device_bytes_at(workspace) < workspaceSizeInBytes))
    return wrong("the workspace is not aligned or not as large as said");
  if (overlap(p->a, A, p->d, D) || overlap(p->b, B, p->d, D)) return wrong("D overlaps A or B");
  if (C == D ? p->c.ld != p->d.ld || p->c.order != p->d.order || p->c.step != p->d.step : overlap(p->c, C, p->d, D))
    return wrong("D overlaps C, but is not laid out as C");
  float factors[2];
  std::memcpy(&factors[0], alpha, sizeof(float));
  std::memcpy(&factors[1], beta, sizeof(float));
  const bool ta = p->desc.transa != CUBLAS_OP_N, tb = p->desc.transb != CUBLAS_OP_N;
  const std::size_t used = chosen.workspace;
  const cudaError_t code = enqueue(stream, [=] {
    multiply({p->a, A, ta}, {p->b, B, tb}, {p->c, C, false}, p->d, D, factors[0], factors[1]);
    if (used != 0) {
      note_write(workspace, used);
      std::memset(workspace, 0xff, used);
    }
  });
  return code == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
