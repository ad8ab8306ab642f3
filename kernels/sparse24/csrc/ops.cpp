// Registration of the CUDA side of ../ops.py's ops with torch's stable ABI, and nothing else.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "config.h"
#include "gemm.h"
#include "layout.h"
#include "pack.h"

namespace sparse24 {
namespace {

using torch::stable::Tensor;

constexpr int kPlanSm80 = -2;  // seam.py

// torch's current stream. A weak reference to its symbol stays null where libtorch_cuda is loaded
// later or locally, so it is looked up in the library that torch has loaded.
cudaStream_t current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return torch_cuda ? reinterpret_cast<Get>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"))
                      : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "sparse24: this torch has no CUDA (libtorch_cuda.so is not loaded)");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

struct Device {
  int multiprocessors = 0, major = 0;
};

const Device& device_of(int index) {
  static Device known[64];
  Device& device = known[index];
  if (device.multiprocessors == 0) {
    cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, index);
    cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
  }
  return device;
}

class OnDevice {  // the current device for as long as this lives
 public:
  explicit OnDevice(int index) {
    cudaGetDevice(&before_);
    if (before_ != index) cudaSetDevice(index);
    changed_ = before_ != index;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

void check(const char* wrong) { STD_TORCH_CHECK(wrong == nullptr, "sparse24: ", wrong ? wrong : ""); }

int32_t torch_dtype(Type type) {
  switch (type) {
    case Type::f16: return aoti_torch_dtype_float16();
    case Type::bf16: return aoti_torch_dtype_bfloat16();
    case Type::s8: return aoti_torch_dtype_int8();
    case Type::e4m3: return aoti_torch_dtype_float8_e4m3fn();
    case Type::s32: return aoti_torch_dtype_int32();
    default: return aoti_torch_dtype_float32();
  }
}

Type type_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  for (const Type type : {Type::f16, Type::bf16, Type::s8, Type::e4m3, Type::s32}) {
    if (torch_dtype(type) == dtype) return type;
  }
  return Type::f32;
}

// [rows, columns] whose rows lie `pitch` elements apart.
Tensor empty_rows(int64_t rows, int64_t columns, int64_t pitch, Type type, int device) {
  const int64_t sizes[2] = {rows, columns}, strides[2] = {pitch, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, sizes, strides, torch_dtype(type),
                                                  aoti_torch_device_type_cuda(), device, &handle));
  return Tensor(handle);
}

const char* sm90(const Gemm& gemm, const Plan& plan, int multiprocessors) {
#define S24_CASE(type_)                                                             \
  case Type::type_:                                                                 \
    return gemm.sparse ? sm90_##type_##_sparse_gemm(gemm, plan, multiprocessors)    \
                       : sm90_##type_##_dense_gemm(gemm, plan, multiprocessors);
  switch (gemm.type) {
    S24_CASE(f16) S24_CASE(bf16) S24_CASE(s8) S24_CASE(e4m3)
    default: return "x must be float16, bfloat16, int8 or float8_e4m3fn";
  }
#undef S24_CASE
}

// The epilogue's side of a Gemm, from an op's arguments.
Gemm gemm_of(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
             int64_t out_features, int64_t element, int64_t out_type, int64_t activation,
             double residual_scale, double out_scale, bool sparse) {
  STD_TORCH_CHECK(packed.is_contiguous() && packed.get_device_index() == x.get_device_index(),
                  "sparse24: the packed weight must be contiguous and on the device of x");
  Gemm gemm;
  gemm.out_features = static_cast<int>(out_features);
  gemm.type = static_cast<Type>(element);
  gemm.out_type = static_cast<Type>(out_type);
  gemm.sparse = sparse;
  gemm.x = x.data_ptr();
  gemm.weight = packed.data_ptr();
  gemm.scale = scale ? static_cast<const float*>(scale->data_ptr()) : nullptr;
  gemm.bias = bias ? bias->data_ptr() : nullptr;
  gemm.bias_type = bias ? type_of(*bias) : Type::f32;
  gemm.residual = residual ? residual->data_ptr() : nullptr;
  gemm.residual_scale = static_cast<float>(residual_scale);
  gemm.out_scale = static_cast<float>(out_scale);
  gemm.activation = static_cast<Activation>(activation);
  return gemm;
}

// Bytes between rows; those of a single row are free, and the copy engine takes multiples of 16.
int64_t pitch_of(const Tensor& rows, int size) {
  return rows.size(0) == 1 ? (rows.size(1) * size + 15) / 16 * 16 : rows.stride(0) * size;
}

// The same between the pixels of an image, whose dimensions of one element may have any stride.
int64_t pixel_pitch_of(const Tensor& image, int size) {
  for (const int dimension : {2, 1, 0}) {
    if (image.size(dimension) > 1) return image.stride(dimension) * size;
  }
  return (image.size(3) * size + 15) / 16 * 16;
}

// The result's rows lie a multiple of 16 bytes apart (seam.py's pitch), so that they can be stored
// by the copy engine and read by the next product.
Tensor empty_result(Gemm& gemm, int device) {
  const int size = size_of(gemm.out_type), step = 16 / size;
  const int64_t pitch = (gemm.out_features + step - 1) / step * step;
  gemm.out_pitch = pitch * size;
  Tensor out = empty_rows(gemm.tokens, gemm.out_features, pitch, gemm.out_type, device);
  gemm.out = out.data_ptr();
  return out;
}

void launch(Gemm& gemm, int64_t plan, int index) {
  if (gemm.tokens == 0) return;
  const Device& device = device_of(index);
  gemm.stream = current_stream(index);
  if (plan == kPlanSm80 || device.major != 9) {
    check(sm80_gemm(gemm, device.multiprocessors));
    return;
  }
  const Plan chosen = plan < 0 ? choose_plan(gemm.tokens, gemm.in_features, gemm.out_features,
                                             size_of(gemm.type), gemm.sparse, device.multiprocessors,
                                             gemm.convolution)
                               : Plan::of(plan);
  check(sm90(gemm, chosen, device.multiprocessors));
}

Tensor linear(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> residual,
              std::optional<Tensor> scale, int64_t out_features, int64_t in_features, int64_t element,
              int64_t out_type, int64_t activation, double residual_scale, double out_scale, bool sparse,
              int64_t plan) {
  const int index = x.get_device_index();
  const OnDevice guard(index);
  Gemm gemm = gemm_of(x, packed, bias, residual, scale, out_features, element, out_type, activation,
                      residual_scale, out_scale, sparse);
  gemm.tokens = static_cast<int>(x.size(0));
  gemm.in_features = static_cast<int>(in_features);
  gemm.x_pitch = pitch_of(x, size_of(gemm.type));
  gemm.residual_pitch = residual ? pitch_of(*residual, size_of(gemm.out_type)) : 0;
  Tensor out = empty_result(gemm, index);
  launch(gemm, plan, index);
  return out;
}

int out_size(int size, int kernel, int stride, int padding, int dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// x [batch, height, width, channels], channels contiguous and pixels one pitch apart; the pairs are
// of height and width; the result is [batch * out_height * out_width, out].
Tensor convolve(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> residual,
                std::optional<Tensor> scale, int64_t out_features, std::vector<int64_t> kernel,
                std::vector<int64_t> stride, std::vector<int64_t> padding,
                std::vector<int64_t> dilation, int64_t groups, int64_t element, int64_t out_type,
                int64_t activation, double residual_scale, double out_scale, bool sparse,
                int64_t plan) {
  const int index = x.get_device_index();
  const OnDevice guard(index);
  Gemm gemm = gemm_of(x, packed, bias, residual, scale, out_features, element, out_type, activation,
                      residual_scale, out_scale, sparse);
  Convolution c;
  c.batch = static_cast<int>(x.size(0));
  c.height = static_cast<int>(x.size(1));
  c.width = static_cast<int>(x.size(2));
  c.channels = static_cast<int>(x.size(3));
  c.kernel_height = static_cast<int>(kernel.at(0));
  c.kernel_width = static_cast<int>(kernel.at(1));
  c.stride_height = static_cast<int>(stride.at(0));
  c.stride_width = static_cast<int>(stride.at(1));
  c.padding_height = static_cast<int>(padding.at(0));
  c.padding_width = static_cast<int>(padding.at(1));
  c.dilation_height = static_cast<int>(dilation.at(0));
  c.dilation_width = static_cast<int>(dilation.at(1));
  c.groups = static_cast<int>(groups);
  c.out_height = out_size(c.height, c.kernel_height, c.stride_height, c.padding_height, c.dilation_height);
  c.out_width = out_size(c.width, c.kernel_width, c.stride_width, c.padding_width, c.dilation_width);
  const int columns = block_k(size_of(gemm.type));
  gemm.tokens = c.batch * c.out_height * c.out_width;
  gemm.in_features = c.kernel_height * c.kernel_width * ceil_div(c.channels / c.groups, columns) * columns;
  gemm.x_pitch = pixel_pitch_of(x, size_of(gemm.type));
  gemm.residual_pitch = residual ? pitch_of(*residual, size_of(gemm.out_type)) : 0;
  gemm.convolution = &c;
  Tensor out = empty_result(gemm, index);
  launch(gemm, plan, index);
  return out;
}

void pack_raw(Tensor weight, Tensor packed, Tensor bad, bool sparse) {
  const int index = weight.get_device_index();
  const OnDevice guard(index);
  const Type type = type_of(weight);
  check(pack(weight.data_ptr(), weight.stride(0) * size_of(type), weight.size(0), weight.size(1), type,
             sparse, packed.data_ptr(), static_cast<int64_t*>(bad.data_ptr()), current_stream(index)));
}

Tensor unpack_(Tensor packed, int64_t rows, int64_t columns, int64_t element, bool sparse) {
  const int index = packed.get_device_index();
  const OnDevice guard(index);
  const Type type = static_cast<Type>(element);
  Tensor weight = empty_rows(rows, columns, columns, type, index);
  check(unpack(packed.data_ptr(), rows, columns, type, sparse, weight.data_ptr(),
               columns * size_of(type), current_stream(index)));
  return weight;
}

// groups: of a convolution, 0 for a plain product.
int64_t plan(int64_t tokens, int64_t in_features, int64_t out_features, int64_t element, bool sparse,
             int64_t multiprocessors, int64_t groups) {
  Convolution convolution = {};
  convolution.groups = static_cast<int>(groups);
  return choose_plan(tokens, in_features, out_features, size_of(static_cast<Type>(element)), sparse,
                     multiprocessors, groups == 0 ? nullptr : &convolution)
      .number();
}

double predict(int64_t number, int64_t tokens, int64_t in_features, int64_t out_features,
               int64_t element, bool sparse, int64_t multiprocessors) {
  return predict_seconds(Plan::of(number), tokens, in_features, out_features,
                         size_of(static_cast<Type>(element)), sparse, multiprocessors);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparse24, CUDA, library) {
  library.impl("linear", TORCH_BOX(&linear));
  library.impl("convolve", TORCH_BOX(&convolve));
  library.impl("pack_raw", TORCH_BOX(&pack_raw));
  library.impl("unpack", TORCH_BOX(&unpack_));
}

STABLE_TORCH_LIBRARY_IMPL(sparse24, CompositeExplicitAutograd, library) {
  library.impl("plan", TORCH_BOX(&plan));
  library.impl("predict", TORCH_BOX(&predict));
}

}  // namespace sparse24
