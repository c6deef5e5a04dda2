#map = affine_map<()[s0] -> (0, s0)>
#map1 = affine_map<()[s0] -> (64, s0)>
#map2 = affine_map<()[s0] -> ((s0 + 15) floordiv 16)>
#map3 = affine_map<()[s0] -> (s0 * 999424 + 262144)>
#map4 = affine_map<()[s0] -> (s0 * 999424)>
#map5 = affine_map<()[s0] -> (s0 * 999424 + 393216)>
#map6 = affine_map<(d0)[s0] -> ((-d0 + s0) ceildiv 512, 4)>
#map7 = affine_map<()[s0, s1, s2, s3] -> ((s0 + ((s2 - s3) floordiv 2048) * s1) mod 2)>
#map8 = affine_map<()[s0, s1, s2, s3] -> (s0 + ((s2 - s3) floordiv 2048) * s1)>
#map9 = affine_map<()[s0] -> (s0 + 10)>
#map10 = affine_map<(d0)[s0] -> (d0 * 512 + s0)>
#map11 = affine_map<()[s0] -> (s0 + 6)>
#map12 = affine_map<()[s0] -> (s0 + 2)>
#map13 = affine_map<()[s0, s1] -> (((s0 - s1) floordiv 128) mod 2)>
#map14 = affine_map<()[s0, s1] -> ((s0 - s1) floordiv 128)>
#map15 = affine_map<()[s0, s1] -> (s1, s0)>
#map16 = affine_map<()[s0, s1] -> (s1 + 128, s0)>
#map17 = affine_map<()[s0, s1] -> (128, s0 - s1)>
#map18 = affine_map<(d0) -> (d0 * 999424 + 917504)>
#map19 = affine_map<(d0) -> (d0 * 999424 + 950272)>
#map20 = affine_map<(d0) -> (d0 * 999424 + 966656)>
#map21 = affine_map<()[s0] -> (s0 * 32)>
#map22 = affine_map<()[s0, s1, s2] -> (s0 + s1 + s2)>
#map23 = affine_map<()[s0] -> (s0 * 16)>
#map24 = affine_map<()[s0, s1] -> (64, s1, s0 * 32)>
#map25 = affine_map<()[s0, s1] -> (32, s0 - s1)>
module attributes {dlti.target_system_spec = #dlti.target_system_spec<"NPU" : #hacc.target_device_spec<#dlti.dl_entry<"AI_CORE_COUNT", 24 : i32>, #dlti.dl_entry<"CUBE_CORE_COUNT", 24 : i32>, #dlti.dl_entry<"VECTOR_CORE_COUNT", 48 : i32>, #dlti.dl_entry<"UB_SIZE", 1572864 : i32>, #dlti.dl_entry<"L1_SIZE", 4194304 : i32>, #dlti.dl_entry<"L0A_SIZE", 524288 : i32>, #dlti.dl_entry<"L0B_SIZE", 524288 : i32>, #dlti.dl_entry<"L0C_SIZE", 1048576 : i32>, #dlti.dl_entry<"UB_ALIGN_SIZE", 256 : i32>, #dlti.dl_entry<"L1_ALIGN_SIZE", 256 : i32>, #dlti.dl_entry<"L0C_ALIGN_SIZE", 4096 : i32>>>,   hivm.module_core_type = #hivm.module_core_type<MIX>} {
  func.func @tiled_kernel_infer_workspace_shape_function() -> index attributes {hacc.function_kind = #hacc.function_kind<HOST>, hacc.host_func_type = #hacc.host_func_type<infer_workspace_shape_function>} {
    %c999424 = arith.constant 999424 : index
    return %c999424 : index
  }
  func.func @tiled_kernel_infer_task_type_function() -> i8 attributes {hacc.function_kind = #hacc.function_kind<HOST>, hacc.host_func_type = #hacc.host_func_type<infer_task_type_function>} {
    %c32_i8 = arith.constant 32 : i8
    return %c32_i8 : i8
  }
  func.func @tiled_kernel_mix_aic(%arg0: i64 {hacc.arg_type = #hacc.arg_type<ffts_base_address>}, %arg1: memref<?xi8, #hivm.address_space<gm>> {hacc.arg_type = #hacc.arg_type<sync_block_lock>}, %arg2: memref<?xi8, #hivm.address_space<gm>> {hacc.arg_type = #hacc.arg_type<workspace>}, %arg3: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg4: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg5: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg6: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 1 : i32}, %arg7: memref<?xf32, #hivm.address_space<gm>> {tt.tensor_kind = 1 : i32}, %arg8: memref<?xi8, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg9: memref<?xf32, #hivm.address_space<gm>>, %arg10: memref<?xi32, #hivm.address_space<gm>>, %arg11: memref<?xi32, #hivm.address_space<gm>>, %arg12: memref<?xi32, #hivm.address_space<gm>>, %arg13: memref<?xi32, #hivm.address_space<gm>>, %arg14: memref<?xi32, #hivm.address_space<gm>>, %arg15: memref<?xi32, #hivm.address_space<gm>>, %arg16: i32, %arg17: i32, %arg18: i32, %arg19: i32, %arg20: i32, %arg21: i32, %arg22: i32, %arg23: i32, %arg24: i32, %arg25: i32, %arg26: i32, %arg27: i32, %arg28: i32, %arg29: i32, %arg30: i32, %arg31: f32, %arg32: f32, %arg33: i32, %arg34: i32, %arg35: i32, %arg36: i32, %arg37: i32, %arg38: i32, %arg39: i32, %arg40: i32, %arg41: i32) attributes {SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64, func_dyn_memref_args = dense<[false, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false]> : vector<42xi1>, hacc.entry, hacc.function_kind = #hacc.function_kind<DEVICE>, hivm.func_core_type = #hivm.func_core_type<AIC>, hivm.part_of_mix, hivm.storage_aligned, parallel_mode = "simd"} {
    %false = arith.constant false
    %c0_i8 = arith.constant 0 : i8
    %c2048_i32 = arith.constant 2048 : i32
    %c1_i32 = arith.constant 1 : i32
    %true = arith.constant true
    %c1 = arith.constant 1 : index
    %c128 = arith.constant 128 : index
    %cst = arith.constant 0.000000e+00 : f16
    %c64 = arith.constant 64 : index
    %c0 = arith.constant 0 : index
    %c64_i32 = arith.constant 64 : i32
    %c512_i32 = arith.constant 512 : i32
    %c128_i32 = arith.constant 128 : i32
    %c0_i32 = arith.constant 0 : i32
    %c512 = arith.constant 512 : index
    %c0_i64 = arith.constant 0 : i64
    %c3_i64 = arith.constant 3 : i64
    %c4_i64 = arith.constant 4 : i64
    %c-1_i64 = arith.constant -1 : i64
    %c1_i64 = arith.constant 1 : i64
    %c2_i64 = arith.constant 2 : i64
    %c491520_i64 = arith.constant 491520 : i64
    %c344064_i64 = arith.constant 344064 : i64
    %c376832_i64 = arith.constant 376832 : i64
    %c49152_i64 = arith.constant 49152 : i64
    %c409600_i64 = arith.constant 409600 : i64
    %c425984_i64 = arith.constant 425984 : i64
    %c278528_i64 = arith.constant 278528 : i64
    %c16384_i64 = arith.constant 16384 : i64
    %c147456_i64 = arith.constant 147456 : i64
    %0 = hivm.hir.pointer_cast(%c16384_i64) : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
    %1 = hivm.hir.pointer_cast(%c147456_i64) : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
    %2 = hivm.hir.pointer_cast(%c278528_i64) : memref<32x4x16x16xf16, #hivm.address_space<cbuf>>
    %3 = hivm.hir.pointer_cast(%c425984_i64) : memref<32x4x16x16xf16, #hivm.address_space<cbuf>>
    %4 = hivm.hir.pointer_cast(%c147456_i64) : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
    %5 = hivm.hir.pointer_cast(%c16384_i64) : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
    %6 = hivm.hir.pointer_cast(%c409600_i64) : memref<8x4x16x16xf16, #hivm.address_space<cbuf>>
    %7 = hivm.hir.pointer_cast(%c49152_i64) : memref<8x4x16x16xf16, #hivm.address_space<cbuf>>
    %8 = hivm.hir.pointer_cast(%c376832_i64) : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
    %9 = hivm.hir.pointer_cast(%c16384_i64) : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
    %10 = hivm.hir.pointer_cast(%c344064_i64) : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
    %11 = hivm.hir.pointer_cast(%c491520_i64) : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
    hivm.hir.set_ffts_base_addr %arg0
    hivm.hir.set_mask_norm
    %12 = hivm.hir.get_block_idx -> i64
    %13 = arith.trunci %12 : i64 to i32
    %14 = arith.muli %arg41, %arg40 : i32
    %15 = arith.divsi %13, %14 : i32
    %16 = arith.remsi %15, %arg39 : i32
    %17 = arith.remsi %16, %arg36 : i32
    %18 = arith.divsi %16, %arg36 : i32
    %19 = arith.remsi %18, %arg35 : i32
    %20 = arith.divsi %18, %arg35 : i32
    %21 = arith.muli %17, %c64_i32 : i32
    %22 = arith.subi %arg37, %21 : i32
    %23 = arith.extsi %20 : i32 to i64
    %24 = arith.extsi %21 : i32 to i64
    %25 = arith.extsi %arg16 : i32 to i64
    %26 = arith.muli %23, %25 : i64
    %27 = arith.extsi %19 : i32 to i64
    %28 = arith.extsi %arg18 : i32 to i64
    %29 = arith.muli %27, %28 : i64
    %30 = arith.extsi %arg17 : i32 to i64
    %31 = arith.muli %24, %30 : i64
    %32 = arith.addi %29, %31 : i64
    %33 = arith.addi %26, %32 : i64
    %34 = arith.index_cast %33 : i64 to index
    %35 = arith.index_cast %arg17 : i32 to index
    %reinterpret_cast = memref.reinterpret_cast %arg3 to offset: [%34], sizes: [64, 128], strides: [%35, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<64x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
    %36 = hivm.hir.pointer_cast(%c0_i64) : memref<8x4x16x16xf16, #hivm.address_space<cbuf>>
    %37 = arith.index_cast %22 : i32 to index
    %38 = affine.max #map()[%37]
    %39 = affine.min #map1()[%38]
    %40 = arith.cmpi slt, %39, %c64 : index
    %subview = memref.subview %reinterpret_cast[0, 0] [%39, 128] [1, 1] : memref<64x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
    %41 = affine.apply #map2()[%39]
    %subview_0 = memref.subview %36[0, 0, 0, 0] [8, %41, 16, 16] [1, 1, 1, 1] : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> to memref<8x?x16x16xf16, strided<[1024, 256, 16, 1]>, #hivm.address_space<cbuf>>
    scf.if %40 {
      %collapse_shape = memref.collapse_shape %36 [[0, 1, 2, 3]] : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> into memref<8192xf16, #hivm.address_space<cbuf>>
      %cast_4 = memref.cast %collapse_shape : memref<8192xf16, #hivm.address_space<cbuf>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>
      func.call @set_l1_2d_half(%cst, %cast_4) : (f16, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
      hivm.hir.pipe_barrier[<PIPE_MTE2>]
    } {hivm.unlikely_condition}
    %cast = memref.cast %subview : memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
    %cast_1 = memref.cast %subview_0 : memref<8x?x16x16xf16, strided<[1024, 256, 16, 1]>, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
    call @nd2nz_half(%cast, %cast_1) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
    hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
    %42 = arith.addi %21, %arg38 : i32
    %43 = arith.subi %42, %arg37 : i32
    %44 = arith.addi %43, %c64_i32 : i32
    %45 = arith.addi %44, %arg34 : i32
    %46 = arith.minsi %arg38, %45 : i32
    %47 = arith.addi %43, %arg34 : i32
    %48 = arith.addi %47, %c1_i32 : i32
    %49 = arith.minsi %arg38, %48 : i32
    %50 = arith.cmpi sle, %22, %c0_i32 : i32
    %51 = arith.select %50, %c0_i32, %46 : i32
    %52 = arith.maxsi %51, %c0_i32 : i32
    %53 = arith.minsi %52, %c0_i32 : i32
    %54 = arith.maxsi %49, %53 : i32
    %55 = arith.subi %54, %53 : i32
    %56 = arith.divsi %55, %c512_i32 : i32
    %57 = arith.muli %56, %c512_i32 : i32
    %58 = arith.addi %53, %57 : i32
    %59 = arith.select %50, %53, %58 : i32
    %60 = arith.extsi %arg21 : i32 to i64
    %61 = arith.muli %27, %60 : i64
    %62 = arith.extsi %arg24 : i32 to i64
    %63 = arith.muli %27, %62 : i64
    %64 = arith.extsi %arg19 : i32 to i64
    %65 = arith.muli %23, %64 : i64
    %66 = arith.extsi %arg22 : i32 to i64
    %67 = arith.muli %23, %66 : i64
    %68 = arith.extsi %arg20 : i32 to i64
    %69 = arith.extsi %arg23 : i32 to i64
    %70 = hivm.hir.get_block_idx -> i64
    %71 = arith.index_cast %70 : i64 to index
    %72 = affine.apply #map3()[%71]
    %view = memref.view %arg2[%72][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x128xf32, #hivm.address_space<gm>>
    %73 = hivm.hir.get_block_idx -> i64
    %74 = arith.index_cast %73 : i64 to index
    %75 = affine.apply #map4()[%74]
    %view_2 = memref.view %arg2[%75][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x512xf16, #hivm.address_space<gm>>
    %76 = hivm.hir.get_block_idx -> i64
    %77 = arith.index_cast %76 : i64 to index
    %78 = affine.apply #map5()[%77]
    %view_3 = memref.view %arg2[%78][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x512xf32, #hivm.address_space<gm>>
    hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 6 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 7 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 8 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 9 ffts_base_addr = %arg0
    %79 = arith.index_cast %59 : i32 to index
    %80 = arith.index_cast %arg20 : i32 to index
    %81 = arith.index_cast %arg23 : i32 to index
    hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID3>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID4>]
    hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
    scf.for %arg42 = %53 to %59 step %c2048_i32  : i32 {
      %83 = arith.index_cast %arg42 : i32 to index
      %84 = affine.min #map6(%83)[%79]
      hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
      hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
      scf.for %arg43 = %c0 to %84 step %c1 {
        %85 = arith.index_cast %arg42 : i32 to index
        %86 = arith.index_cast %53 : i32 to index
        %87 = affine.apply #map7()[%arg43, %84, %85, %86]
        %88 = arith.index_cast %87 : index to i64
        %89 = arith.cmpi eq, %88, %c1_i64 : i64
        %90 = arith.select %89, %1, %0 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
        %91 = arith.index_cast %arg42 : i32 to index
        %92 = arith.index_cast %53 : i32 to index
        %93 = affine.apply #map8()[%arg43, %84, %91, %92]
        %94 = arith.index_cast %93 : index to i64
        %95 = arith.index_cast %arg42 : i32 to index
        %96 = arith.index_cast %53 : i32 to index
        %97 = affine.apply #map7()[%arg43, %84, %95, %96]
        %98 = arith.index_cast %97 : index to i1
        %99 = arith.select %98, %c3_i64, %c4_i64 : i64
        %100 = affine.apply #map9()[%arg43]
        %101 = arith.index_cast %100 : index to i64
        %102 = affine.apply #map10(%arg43)[%83]
        %103 = arith.index_cast %102 : index to i32
        %104 = arith.extsi %103 : i32 to i64
        %105 = arith.muli %104, %68 : i64
        %106 = arith.addi %65, %105 : i64
        %107 = arith.addi %61, %106 : i64
        %108 = arith.index_cast %107 : i64 to index
        %reinterpret_cast_4 = memref.reinterpret_cast %arg4 to offset: [%108], sizes: [512, 128], strides: [%80, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<512x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, %99]
        %cast_5 = memref.cast %reinterpret_cast_4 : memref<512x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
        %cast_6 = memref.cast %90 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        func.call @nd2nz_half(%cast_5, %cast_6) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
        hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
        %109 = hivm.hir.pointer_cast(%c0_i64) : memref<32x4x16x16xf32, #hivm.address_space<cc>>
        hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
        %cast_7 = memref.cast %36 : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        %cast_8 = memref.cast %90 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        %cast_9 = memref.cast %109 : memref<32x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
        func.call @mma_tile_half_to_float_tb(%cast_7, %cast_8, %true, %39, %c128, %c512, %cast_9, %c-1_i64, %c0_i64, %c-1_i64, %99, %94, %c-1_i64, %c-1_i64, %c0_i8) : (memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) -> ()
        hivm.hir.set_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
        %subview_10 = memref.subview %view_3[%arg43, 0, 0] [1, 64, 512] [1, 1, 1] : memref<4x64x512xf32, #hivm.address_space<gm>> to memref<1x64x512xf32, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>>
        %collapse_shape = memref.collapse_shape %subview_10 [[0, 1], [2]] : memref<1x64x512xf32, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>> into memref<64x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = %101
        hivm.hir.wait_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
        %cast_11 = memref.cast %109 : memref<32x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
        %cast_12 = memref.cast %collapse_shape : memref<64x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
        func.call @fixpipe_nz2nd_float_to_float_4d_to_2d(%cast_11, %cast_12, %c0_i64, %c0_i64, %false, %c0_i8) : (memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i64, i64, i1, i8) -> ()
        hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
        hivm.hir.sync_block_set[<CUBE>, <PIPE_FIX>, <PIPE_S>] flag = 0 ffts_base_addr = %arg0
      } {hivm.loop_core_type = #hivm.tcore_type<CUBE>, multibuffer_unroll_factor = 4 : i32}
      hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
      hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
      hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
      hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
      scf.for %arg43 = %c0 to %84 step %c1 {
        %85 = arith.index_cast %arg42 : i32 to index
        %86 = arith.index_cast %53 : i32 to index
        %87 = affine.apply #map7()[%arg43, %84, %85, %86]
        %88 = arith.index_cast %87 : index to i64
        %89 = arith.cmpi eq, %88, %c1_i64 : i64
        %90 = arith.select %89, %3, %2 : memref<32x4x16x16xf16, #hivm.address_space<cbuf>>
        %91 = arith.index_cast %arg42 : i32 to index
        %92 = arith.index_cast %53 : i32 to index
        %93 = affine.apply #map7()[%arg43, %84, %91, %92]
        %94 = arith.index_cast %93 : index to i64
        %95 = arith.cmpi eq, %94, %c1_i64 : i64
        %96 = arith.select %95, %5, %4 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>>
        %97 = arith.index_cast %arg42 : i32 to index
        %98 = arith.index_cast %53 : i32 to index
        %99 = affine.apply #map8()[%arg43, %84, %97, %98]
        %100 = arith.index_cast %99 : index to i64
        %101 = arith.index_cast %arg42 : i32 to index
        %102 = arith.index_cast %53 : i32 to index
        %103 = affine.apply #map7()[%arg43, %84, %101, %102]
        %104 = arith.index_cast %103 : index to i1
        %105 = arith.select %104, %c3_i64, %c4_i64 : i64
        %106 = affine.apply #map11()[%arg43]
        %107 = arith.index_cast %106 : index to i64
        %108 = affine.apply #map12()[%arg43]
        %109 = arith.index_cast %108 : index to i64
        %110 = affine.apply #map10(%arg43)[%83]
        %111 = arith.index_cast %110 : index to i32
        %112 = arith.extsi %111 : i32 to i64
        %113 = arith.muli %112, %69 : i64
        %114 = arith.addi %67, %113 : i64
        %115 = arith.addi %63, %114 : i64
        %116 = arith.index_cast %115 : i64 to index
        %reinterpret_cast_4 = memref.reinterpret_cast %arg5 to offset: [%116], sizes: [512, 128], strides: [%81, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<512x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, %105]
        %cast_5 = memref.cast %reinterpret_cast_4 : memref<512x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
        %cast_6 = memref.cast %96 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        func.call @nd2nz_half(%cast_5, %cast_6) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
        %subview_7 = memref.subview %view_2[%arg43, 0, 0] [1, 64, 512] [1, 1, 1] : memref<4x64x512xf16, #hivm.address_space<gm>> to memref<64x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE3>, <PIPE_S>] flag = 1
        %cast_8 = memref.cast %subview_7 : memref<64x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
        %cast_9 = memref.cast %90 : memref<32x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        func.call @nd2nz_half(%cast_8, %cast_9) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
        hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
        hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = %107 ffts_base_addr = %arg0
        %117 = hivm.hir.pointer_cast(%c0_i64) : memref<8x4x16x16xf32, #hivm.address_space<cc>>
        hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
        %cast_10 = memref.cast %90 : memref<32x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        %cast_11 = memref.cast %96 : memref<8x32x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
        %cast_12 = memref.cast %117 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
        func.call @mma_tile_half_to_float(%cast_10, %cast_11, %true, %c64, %c512, %c128, %cast_12, %c0_i64, %c-1_i64, %c-1_i64, %105, %100, %c-1_i64, %c-1_i64, %c0_i8) : (memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) -> ()
        hivm.hir.set_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
        %subview_13 = memref.subview %view[%arg43, 0, 0] [1, 64, 128] [1, 1, 1] : memref<4x64x128xf32, #hivm.address_space<gm>> to memref<1x64x128xf32, strided<[8192, 128, 1], offset: ?>, #hivm.address_space<gm>>
        %collapse_shape = memref.collapse_shape %subview_13 [[0, 1], [2]] : memref<1x64x128xf32, strided<[8192, 128, 1], offset: ?>, #hivm.address_space<gm>> into memref<64x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = %109
        hivm.hir.wait_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
        %cast_14 = memref.cast %117 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
        %cast_15 = memref.cast %collapse_shape : memref<64x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
        func.call @fixpipe_nz2nd_float_to_float_4d_to_2d(%cast_14, %cast_15, %c0_i64, %c0_i64, %false, %c0_i8) : (memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i64, i64, i1, i8) -> ()
        hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
        hivm.hir.sync_block_set[<CUBE>, <PIPE_FIX>, <PIPE_S>] flag = 0 ffts_base_addr = %arg0
      } {hivm.loop_core_type = #hivm.tcore_type<CUBE>, multibuffer_unroll_factor = 4 : i32}
      hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
      hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
    }
    hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
    hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID3>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID4>]
    hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 2
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 3
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 4
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 5
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 10
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 11
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 12
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 13
    hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 9 ffts_base_addr = %arg0
    %82 = arith.index_cast %arg38 : i32 to index
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID1>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID2>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID3>]
    hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID4>]
    hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
    scf.for %arg42 = %59 to %51 step %c128_i32  : i32 {
      %83 = arith.index_cast %arg42 : i32 to index
      %84 = arith.index_cast %59 : i32 to index
      %85 = affine.apply #map13()[%83, %84]
      %86 = arith.index_cast %85 : index to i64
      %87 = arith.cmpi eq, %86, %c1_i64 : i64
      %88 = arith.select %87, %7, %6 : memref<8x4x16x16xf16, #hivm.address_space<cbuf>>
      %89 = arith.index_cast %arg42 : i32 to index
      %90 = arith.index_cast %59 : i32 to index
      %91 = affine.apply #map13()[%89, %90]
      %92 = arith.index_cast %91 : index to i64
      %93 = arith.cmpi eq, %92, %c1_i64 : i64
      %94 = arith.select %93, %9, %8 : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
      %95 = arith.index_cast %arg42 : i32 to index
      %96 = arith.index_cast %59 : i32 to index
      %97 = affine.apply #map13()[%95, %96]
      %98 = arith.index_cast %97 : index to i64
      %99 = arith.cmpi eq, %98, %c1_i64 : i64
      %100 = arith.select %99, %11, %10 : memref<8x8x16x16xf16, #hivm.address_space<cbuf>>
      %101 = arith.index_cast %arg42 : i32 to index
      %102 = arith.index_cast %59 : i32 to index
      %103 = affine.apply #map14()[%101, %102]
      %104 = arith.index_cast %103 : index to i64
      %105 = arith.index_cast %arg42 : i32 to index
      %106 = arith.index_cast %59 : i32 to index
      %107 = affine.apply #map13()[%105, %106]
      %108 = arith.index_cast %107 : index to i1
      %109 = arith.select %108, %c3_i64, %c4_i64 : i64
      %110 = arith.index_cast %107 : index to i1
      %111 = arith.select %110, %c1_i64, %c2_i64 : i64
      %112 = arith.extsi %arg42 : i32 to i64
      %113 = arith.muli %112, %68 : i64
      %114 = arith.addi %65, %113 : i64
      %115 = arith.addi %61, %114 : i64
      %116 = arith.index_cast %115 : i64 to index
      %117 = arith.muli %112, %69 : i64
      %118 = arith.addi %67, %117 : i64
      %119 = arith.addi %63, %118 : i64
      %120 = arith.index_cast %119 : i64 to index
      %reinterpret_cast_4 = memref.reinterpret_cast %arg4 to offset: [%116], sizes: [128, 128], strides: [%80, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<128x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
      %121 = arith.index_cast %arg42 : i32 to index
      %122 = affine.max #map15()[%121, %82]
      %123 = affine.min #map16()[%122, %121]
      %124 = affine.min #map17()[%123, %121]
      %125 = arith.cmpi slt, %124, %c128 : index
      %subview_5 = memref.subview %reinterpret_cast_4[0, 0] [%124, 128] [1, 1] : memref<128x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
      %126 = affine.apply #map2()[%124]
      %subview_6 = memref.subview %100[0, 0, 0, 0] [8, %126, 16, 16] [1, 1, 1, 1] : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> to memref<8x?x16x16xf16, strided<[2048, 256, 16, 1]>, #hivm.address_space<cbuf>>
      scf.if %125 {
        hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
        %collapse_shape = memref.collapse_shape %100 [[0, 1, 2, 3]] : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> into memref<16384xf16, #hivm.address_space<cbuf>>
        hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
        %cast_29 = memref.cast %collapse_shape : memref<16384xf16, #hivm.address_space<cbuf>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>
        func.call @set_l1_2d_half(%cst, %cast_29) : (f16, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
        hivm.hir.pipe_barrier[<PIPE_MTE2>]
      } {hivm.unlikely_condition}
      hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, %111]
      %cast_7 = memref.cast %subview_5 : memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      %cast_8 = memref.cast %subview_6 : memref<8x?x16x16xf16, strided<[2048, 256, 16, 1]>, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      func.call @nd2nz_half(%cast_7, %cast_8) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
      hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
      %127 = hivm.hir.pointer_cast(%c0_i64) : memref<8x4x16x16xf32, #hivm.address_space<cc>>
      hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
      %cast_9 = memref.cast %36 : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      %cast_10 = memref.cast %100 : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      %cast_11 = memref.cast %127 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
      func.call @mma_tile_half_to_float_tb(%cast_9, %cast_10, %true, %39, %c128, %124, %cast_11, %c-1_i64, %c0_i64, %c-1_i64, %111, %104, %c-1_i64, %c-1_i64, %c0_i8) : (memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) -> ()
      hivm.hir.set_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
      %128 = hivm.hir.get_block_idx -> i64
      %129 = arith.index_cast %128 : i64 to index
      %130 = affine.apply #map18(%129)
      %view_12 = memref.view %arg2[%130][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf32, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 12
      hivm.hir.wait_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
      %cast_13 = memref.cast %127 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
      %cast_14 = memref.cast %view_12 : memref<64x128xf32, #hivm.address_space<gm>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      func.call @fixpipe_nz2nd_float_to_float_4d_to_2d(%cast_13, %cast_14, %c0_i64, %c0_i64, %false, %c0_i8) : (memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i64, i64, i1, i8) -> ()
      hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
      hivm.hir.sync_block_set[<CUBE>, <PIPE_FIX>, <PIPE_S>] flag = 0 ffts_base_addr = %arg0
      %reinterpret_cast_15 = memref.reinterpret_cast %arg5 to offset: [%120], sizes: [128, 128], strides: [%81, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<128x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
      %subview_16 = memref.subview %reinterpret_cast_15[0, 0] [%124, 128] [1, 1] : memref<128x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
      %subview_17 = memref.subview %94[0, 0, 0, 0] [8, %126, 16, 16] [1, 1, 1, 1] : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> to memref<8x?x16x16xf16, strided<[2048, 256, 16, 1]>, #hivm.address_space<cbuf>>
      scf.if %125 {
        hivm.hir.set_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
        %collapse_shape = memref.collapse_shape %94 [[0, 1, 2, 3]] : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> into memref<16384xf16, #hivm.address_space<cbuf>>
        hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID0>]
        %cast_29 = memref.cast %collapse_shape : memref<16384xf16, #hivm.address_space<cbuf>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>
        func.call @set_l1_2d_half(%cst, %cast_29) : (f16, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
        hivm.hir.pipe_barrier[<PIPE_MTE2>]
      } {hivm.unlikely_condition}
      hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, %109]
      %cast_18 = memref.cast %subview_16 : memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      %cast_19 = memref.cast %subview_17 : memref<8x?x16x16xf16, strided<[2048, 256, 16, 1]>, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      func.call @nd2nz_half(%cast_18, %cast_19) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
      %131 = hivm.hir.get_block_idx -> i64
      %132 = arith.index_cast %131 : i64 to index
      %133 = affine.apply #map19(%132)
      %view_20 = memref.view %arg2[%133][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf16, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE3>, <PIPE_S>] flag = 1
      %cast_21 = memref.cast %view_20 : memref<64x128xf16, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      %cast_22 = memref.cast %88 : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      func.call @nd2nz_half(%cast_21, %cast_22) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) -> ()
      hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_MTE1>, <EVENT_ID0>]
      hivm.hir.sync_block_set[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 9 ffts_base_addr = %arg0
      %134 = hivm.hir.pointer_cast(%c0_i64) : memref<8x4x16x16xf32, #hivm.address_space<cc>>
      hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID0>]
      %cast_23 = memref.cast %88 : memref<8x4x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      %cast_24 = memref.cast %94 : memref<8x8x16x16xf16, #hivm.address_space<cbuf>> to memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>
      %cast_25 = memref.cast %134 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
      func.call @mma_tile_half_to_float(%cast_23, %cast_24, %true, %c64, %c128, %c128, %cast_25, %c0_i64, %c-1_i64, %c-1_i64, %109, %104, %c-1_i64, %c-1_i64, %c0_i8) : (memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) -> ()
      hivm.hir.set_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
      %135 = hivm.hir.get_block_idx -> i64
      %136 = arith.index_cast %135 : i64 to index
      %137 = affine.apply #map20(%136)
      %view_26 = memref.view %arg2[%137][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf32, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 13
      hivm.hir.wait_flag[<PIPE_M>, <PIPE_FIX>, <EVENT_ID0>]
      %cast_27 = memref.cast %134 : memref<8x4x16x16xf32, #hivm.address_space<cc>> to memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>
      %cast_28 = memref.cast %view_26 : memref<64x128xf32, #hivm.address_space<gm>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      func.call @fixpipe_nz2nd_float_to_float_4d_to_2d(%cast_27, %cast_28, %c0_i64, %c0_i64, %false, %c0_i8) : (memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i64, i64, i1, i8) -> ()
      hivm.hir.set_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
      hivm.hir.sync_block_set[<CUBE>, <PIPE_FIX>, <PIPE_S>] flag = 0 ffts_base_addr = %arg0
    } {fixpipe_for_mmad_result_already_inserted = true}
    hivm.hir.wait_flag[<PIPE_FIX>, <PIPE_M>, <EVENT_ID1>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID1>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID2>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID3>]
    hivm.hir.wait_flag[<PIPE_MTE1>, <PIPE_MTE2>, <EVENT_ID4>]
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 12
    hivm.hir.sync_block_wait[<CUBE>, <PIPE_MTE2>, <PIPE_S>] flag = 13
    hivm.hir.pipe_barrier[<PIPE_ALL>]
    return
  }
  func.func private @set_l1_2d_half(f16, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<cbuf>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIC>, llvm.emit_c_interface}
  func.func private @nd2nz_half(memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIC>, llvm.emit_c_interface}
  func.func private @mma_tile_half_to_float_tb(memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIC>, llvm.emit_c_interface}
  func.func private @fixpipe_nz2nd_float_to_float_4d_to_2d(memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i64, i64, i1, i8) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIC>, llvm.emit_c_interface}
  func.func private @mma_tile_half_to_float(memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, memref<?x?x?x?xf16, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cbuf>>, i1, index, index, index, memref<?x?x?x?xf32, strided<[?, ?, ?, ?], offset: ?>, #hivm.address_space<cc>>, i64, i64, i64, i64, i64, i64, i64, i8) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIC>, llvm.emit_c_interface}
  func.func private @broadcast_scalar_int32_t_to_1d(i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @broadcast_scalar_float_to_1d(f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @arange_1d_int32_t(memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, index, index) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @copy_ubuf_to_ubuf_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @load_gm_to_ubuf_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32, index) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vmuls_vs_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @enablevc_reduce_max_ar_float(memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcmp_eq_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vnot_1d_bool(memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vmax_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vsel_vv_1d_bool_float(memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vsel_sv_1d_float(memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vsub_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vexp_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vmul_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vsub_2d_float(memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @enablevc_reduce_sum_ar_float(memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vadd_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcast_float_to_half_1d_with_mode(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @store_ubuf_to_gm_1d_half(memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vmul_2d_float(memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vadds_vs_1d_int32_t(memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vmaxs_vs_1d_int32_t(memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcmp_eq_1d_int32_t(memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcast_bool_to_half_1d_with_temp(memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @broadcast_first_axis_align_2d_half(memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcmps_eq_1d_half(memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, f16, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vsel_vs_1d_float(memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @load_gm_to_ubuf_2d_int8_t(memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, i32, i8, index) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcast_int8_t_to_half_1d_with_mode(memref<?xi8, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vcast_half_to_int32_t_1d_with_mode(memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vdiv_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @store_ubuf_to_gm_2d_half(memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @vln_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func private @store_ubuf_to_gm_1d_float(memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, i32) attributes {hacc.always_inline, hivm.func_core_type = #hivm.func_core_type<AIV>, llvm.emit_c_interface}
  func.func @tiled_kernel_mix_aiv(%arg0: i64 {hacc.arg_type = #hacc.arg_type<ffts_base_address>}, %arg1: memref<?xi8, #hivm.address_space<gm>> {hacc.arg_type = #hacc.arg_type<sync_block_lock>}, %arg2: memref<?xi8, #hivm.address_space<gm>> {hacc.arg_type = #hacc.arg_type<workspace>}, %arg3: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg4: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg5: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg6: memref<?xf16, #hivm.address_space<gm>> {tt.tensor_kind = 1 : i32}, %arg7: memref<?xf32, #hivm.address_space<gm>> {tt.tensor_kind = 1 : i32}, %arg8: memref<?xi8, #hivm.address_space<gm>> {tt.tensor_kind = 0 : i32}, %arg9: memref<?xf32, #hivm.address_space<gm>>, %arg10: memref<?xi32, #hivm.address_space<gm>>, %arg11: memref<?xi32, #hivm.address_space<gm>>, %arg12: memref<?xi32, #hivm.address_space<gm>>, %arg13: memref<?xi32, #hivm.address_space<gm>>, %arg14: memref<?xi32, #hivm.address_space<gm>>, %arg15: memref<?xi32, #hivm.address_space<gm>>, %arg16: i32, %arg17: i32, %arg18: i32, %arg19: i32, %arg20: i32, %arg21: i32, %arg22: i32, %arg23: i32, %arg24: i32, %arg25: i32, %arg26: i32, %arg27: i32, %arg28: i32, %arg29: i32, %arg30: i32, %arg31: f32, %arg32: f32, %arg33: i32, %arg34: i32, %arg35: i32, %arg36: i32, %arg37: i32, %arg38: i32, %arg39: i32, %arg40: i32, %arg41: i32) attributes {SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64, func_dyn_memref_args = dense<[false, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false, false]> : vector<42xi1>, hacc.entry, hacc.function_kind = #hacc.function_kind<DEVICE>, hivm.func_core_type = #hivm.func_core_type<AIV>, hivm.part_of_mix, hivm.storage_aligned, parallel_mode = "simd"} {
    %c0_i8 = arith.constant 0 : i8
    %c4_i32 = arith.constant 4 : i32
    %c118784_i64 = arith.constant 118784 : i64
    %c119040_i64 = arith.constant 119040 : i64
    %c86016_i64 = arith.constant 86016 : i64
    %c34976_i64 = arith.constant 34976 : i64
    %c102400_i64 = arith.constant 102400 : i64
    %c26784_i64 = arith.constant 26784 : i64
    %c26656_i64 = arith.constant 26656 : i64
    %c26528_i64 = arith.constant 26528 : i64
    %c25504_i64 = arith.constant 25504 : i64
    %c25440_i64 = arith.constant 25440 : i64
    %c25312_i64 = arith.constant 25312 : i64
    %c25280_i64 = arith.constant 25280 : i64
    %c25248_i64 = arith.constant 25248 : i64
    %c25120_i64 = arith.constant 25120 : i64
    %c25088_i64 = arith.constant 25088 : i64
    %c24960_i64 = arith.constant 24960 : i64
    %c24832_i64 = arith.constant 24832 : i64
    %c24800_i64 = arith.constant 24800 : i64
    %c24768_i64 = arith.constant 24768 : i64
    %c16576_i64 = arith.constant 16576 : i64
    %c16448_i64 = arith.constant 16448 : i64
    %c16384_i64 = arith.constant 16384 : i64
    %c69632_i64 = arith.constant 69632 : i64
    %c65536_i64 = arith.constant 65536 : i64
    %c135552_i64 = arith.constant 135552 : i64
    %c49152_i64 = arith.constant 49152 : i64
    %c32768_i64 = arith.constant 32768 : i64
    %c136096_i64 = arith.constant 136096 : i64
    %c135968_i64 = arith.constant 135968 : i64
    %c136192_i64 = arith.constant 136192 : i64
    %c136128_i64 = arith.constant 136128 : i64
    %c136064_i64 = arith.constant 136064 : i64
    %c136032_i64 = arith.constant 136032 : i64
    %c136000_i64 = arith.constant 136000 : i64
    %c152704_i64 = arith.constant 152704 : i64
    %c135936_i64 = arith.constant 135936 : i64
    %c0_i64 = arith.constant 0 : i64
    %c135808_i64 = arith.constant 135808 : i64
    %c169216_i64 = arith.constant 169216 : i64
    %c152576_i64 = arith.constant 152576 : i64
    %c169088_i64 = arith.constant 169088 : i64
    %c152448_i64 = arith.constant 152448 : i64
    %c151936_i64 = arith.constant 151936 : i64
    %c151808_i64 = arith.constant 151808 : i64
    %c151680_i64 = arith.constant 151680 : i64
    %c135296_i64 = arith.constant 135296 : i64
    %c118912_i64 = arith.constant 118912 : i64
    %c2048_i32 = arith.constant 2048 : i32
    %c1_i32 = arith.constant 1 : i32
    %cst = arith.constant 0.000000e+00 : f16
    %c64_i32 = arith.constant 64 : i32
    %c512_i32 = arith.constant 512 : i32
    %cst_0 = arith.constant 1.000000e+00 : f32
    %cst_1 = arith.constant 0.000000e+00 : f32
    %cst_2 = arith.constant 0xFF800000 : f32
    %c128_i32 = arith.constant 128 : i32
    %c0_i32 = arith.constant 0 : i32
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %c2 = arith.constant 2 : index
    %0 = hivm.hir.get_block_idx -> i64
    %1 = arith.trunci %0 : i64 to i32
    %2 = arith.muli %arg41, %arg40 : i32
    %3 = hivm.hir.pointer_cast(%c118912_i64) : memref<32x128xi32, #hivm.address_space<ub>>
    %collapse_shape = memref.collapse_shape %3 [[0, 1]] : memref<32x128xi32, #hivm.address_space<ub>> into memref<4096xi32, #hivm.address_space<ub>>
    %cast = memref.cast %collapse_shape : memref<4096xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @broadcast_scalar_int32_t_to_1d(%c0_i32, %cast) : (i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %4 = hivm.hir.pointer_cast(%c135296_i64) : memref<32x128xf32, #hivm.address_space<ub>>
    %collapse_shape_3 = memref.collapse_shape %4 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
    %cast_4 = memref.cast %collapse_shape_3 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @broadcast_scalar_float_to_1d(%cst_1, %cast_4) : (f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %5 = hivm.hir.pointer_cast(%c151680_i64) : memref<32xf32, #hivm.address_space<ub>>
    %cast_5 = memref.cast %5 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @broadcast_scalar_float_to_1d(%cst_1, %cast_5) : (f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %6 = hivm.hir.pointer_cast(%c151808_i64) : memref<32xf32, #hivm.address_space<ub>>
    %cast_6 = memref.cast %6 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @broadcast_scalar_float_to_1d(%cst_2, %cast_6) : (f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %7 = hivm.hir.pointer_cast(%c151936_i64) : memref<128xi32, #hivm.address_space<ub>>
    %cast_7 = memref.cast %7 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @arange_1d_int32_t(%cast_7, %c0, %c1) : (memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, index, index) -> ()
    %8 = arith.extsi %arg28 : i32 to i64
    %9 = hivm.hir.pointer_cast(%c152448_i64) : memref<32xf32, #hivm.address_space<ub>>
    %cast_8 = memref.cast %9 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @broadcast_scalar_float_to_1d(%cst_0, %cast_8) : (f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %10 = arith.extsi %arg25 : i32 to i64
    %11 = arith.extsi %arg27 : i32 to i64
    %12 = arith.extsi %arg26 : i32 to i64
    %13 = arith.index_cast %arg26 : i32 to index
    %14 = hivm.hir.get_sub_block_idx -> i64
    %15 = arith.index_cast %14 : i64 to index
    %16 = affine.apply #map21()[%15]
    hivm.hir.set_ffts_base_addr %arg0
    hivm.hir.set_mask_norm
    %17 = arith.divsi %1, %2 : i32
    %18 = arith.remsi %17, %arg39 : i32
    %19 = arith.remsi %18, %arg36 : i32
    %20 = arith.divsi %18, %arg36 : i32
    %21 = arith.remsi %20, %arg35 : i32
    %22 = arith.divsi %20, %arg35 : i32
    %23 = arith.muli %19, %c64_i32 : i32
    %24 = arith.subi %arg37, %23 : i32
    %25 = arith.extsi %22 : i32 to i64
    %26 = arith.muli %25, %8 : i64
    %27 = arith.index_cast %26 : i64 to index
    %28 = arith.muli %21, %arg29 : i32
    %29 = arith.index_cast %28 : i32 to index
    %30 = arith.index_cast %23 : i32 to index
    %31 = affine.apply #map22()[%30, %27, %29]
    %32 = arith.extsi %23 : i32 to i64
    %33 = arith.extsi %21 : i32 to i64
    %34 = arith.index_cast %24 : i32 to index
    %35 = affine.max #map()[%34]
    %36 = affine.min #map1()[%35]
    %37 = arith.addi %23, %arg38 : i32
    %38 = arith.subi %37, %arg37 : i32
    %39 = arith.addi %38, %c64_i32 : i32
    %40 = arith.addi %39, %arg34 : i32
    %41 = arith.minsi %arg38, %40 : i32
    %42 = arith.addi %38, %arg34 : i32
    %43 = arith.addi %42, %c1_i32 : i32
    %44 = arith.minsi %arg38, %43 : i32
    %45 = arith.cmpi sle, %24, %c0_i32 : i32
    %46 = arith.select %45, %c0_i32, %41 : i32
    %47 = arith.maxsi %46, %c0_i32 : i32
    %48 = arith.minsi %47, %c0_i32 : i32
    %49 = arith.maxsi %44, %48 : i32
    %50 = arith.subi %49, %48 : i32
    %51 = arith.divsi %50, %c512_i32 : i32
    %52 = arith.muli %51, %c512_i32 : i32
    %53 = arith.addi %48, %52 : i32
    %54 = arith.select %45, %48, %53 : i32
    %55 = hivm.hir.get_block_idx -> i64
    %56 = arith.index_cast %55 : i64 to index
    %57 = affine.apply #map3()[%56]
    %view = memref.view %arg2[%57][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x128xf32, #hivm.address_space<gm>>
    %58 = hivm.hir.get_block_idx -> i64
    %59 = arith.index_cast %58 : i64 to index
    %60 = affine.apply #map4()[%59]
    %view_9 = memref.view %arg2[%60][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x512xf16, #hivm.address_space<gm>>
    %61 = hivm.hir.get_block_idx -> i64
    %62 = arith.index_cast %61 : i64 to index
    %63 = affine.apply #map5()[%62]
    %view_10 = memref.view %arg2[%63][] : memref<?xi8, #hivm.address_space<gm>> to memref<4x64x512xf32, #hivm.address_space<gm>>
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 2 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 3 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 4 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 5 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 10 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 11 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 12 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 13 ffts_base_addr = %arg0
    %64 = arith.index_cast %54 : i32 to index
    %65 = hivm.hir.pointer_cast(%c169088_i64) : memref<32xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %cast_11 = memref.cast %5 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_12 = memref.cast %65 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @copy_ubuf_to_ubuf_1d_float(%cast_11, %cast_12, %c0_i32, %cst_1) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) -> ()
    %66 = hivm.hir.pointer_cast(%c152576_i64) : memref<32xf32, #hivm.address_space<ub>>
    %cast_13 = memref.cast %6 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_14 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @copy_ubuf_to_ubuf_1d_float(%cast_13, %cast_14, %c0_i32, %cst_1) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) -> ()
    %67 = hivm.hir.pointer_cast(%c169216_i64) : memref<32x128xf32, #hivm.address_space<ub>>
    %collapse_shape_15 = memref.collapse_shape %67 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
    %cast_16 = memref.cast %collapse_shape_3 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_17 = memref.cast %collapse_shape_15 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @copy_ubuf_to_ubuf_1d_float(%cast_16, %cast_17, %c0_i32, %cst_1) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) -> ()
    hivm.hir.pipe_barrier[<PIPE_V>]
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
    hivm.hir.set_flag[<PIPE_MTE3>, <PIPE_MTE2>, <EVENT_ID0>]
    %68:2 = scf.for %arg42 = %48 to %54 step %c2048_i32 iter_args(%arg43 = %65, %arg44 = %67) -> (memref<32xf32, #hivm.address_space<ub>>, memref<32x128xf32, #hivm.address_space<ub>>)  : i32 {
      %92 = arith.index_cast %arg42 : i32 to index
      %93 = affine.min #map6(%92)[%64]
      %subview_58 = memref.subview %view_10[0, %16, 0] [4, 32, 512] [1, 1, 1] {to_be_bubbled_slice} : memref<4x64x512xf32, #hivm.address_space<gm>> to memref<4x32x512xf32, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>>
      %94 = hivm.hir.pointer_cast(%c135296_i64) : memref<4x32xf32, #hivm.address_space<ub>>
      %95 = scf.for %arg45 = %c0 to %93 step %c1 iter_args(%arg46 = %arg43) -> (memref<32xf32, #hivm.address_space<ub>>) {
        %97 = affine.apply #map9()[%arg45]
        %98 = arith.index_cast %97 : index to i64
        %99 = affine.apply #map11()[%arg45]
        %100 = arith.index_cast %99 : index to i64
        %subview_60 = memref.subview %view_9[%arg45, 0, 0] [1, 64, 512] [1, 1, 1] : memref<4x64x512xf16, #hivm.address_space<gm>> to memref<1x64x512xf16, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>>
        %collapse_shape_61 = memref.collapse_shape %subview_60 [[0, 1], [2]] : memref<1x64x512xf16, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>> into memref<64x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
        hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = %100
        hivm.hir.sync_block_wait[<VECTOR>, <PIPE_FIX>, <PIPE_S>] flag = 0
        %subview_62 = memref.subview %94[%arg45, 0] [1, 32] [1, 1] : memref<4x32xf32, #hivm.address_space<ub>> to memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
        %subview_63 = memref.subview %subview_58[%arg45, 0, 0] [1, 32, 512] [1, 1, 1] : memref<4x32x512xf32, strided<[32768, 512, 1], offset: ?>, #hivm.address_space<gm>> to memref<32x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
        %subview_64 = memref.subview %collapse_shape_61[%16, 0] [32, 512] [1, 1] {to_be_bubbled_slice} : memref<64x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<32x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
        %101 = hivm.hir.pointer_cast(%c135808_i64) : memref<32xf32, #hivm.address_space<ub>>
        %102 = hivm.hir.pointer_cast(%c169088_i64) : memref<32xf32, #hivm.address_space<ub>>
        scf.for %arg47 = %c0 to %c2 step %c1 {
          %103 = affine.apply #map23()[%arg47]
          %subview_67 = memref.subview %66[%103] [16] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          %subview_68 = memref.subview %subview_63[%103, 0] [16, 512] [1, 1] : memref<32x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<16x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
          %104 = hivm.hir.pointer_cast(%c0_i64) : memref<16x512xf32, #hivm.address_space<ub>>
          %collapse_shape_69 = memref.collapse_shape %subview_68 [[0, 1]] : memref<16x512xf32, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> into memref<8192xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
          %collapse_shape_70 = memref.collapse_shape %104 [[0, 1]] : memref<16x512xf32, #hivm.address_space<ub>> into memref<8192xf32, #hivm.address_space<ub>>
          hivm.hir.wait_flag[<PIPE_MTE3>, <PIPE_MTE2>, <EVENT_ID0>]
          %cast_71 = memref.cast %collapse_shape_69 : memref<8192xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>
          %cast_72 = memref.cast %collapse_shape_70 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @load_gm_to_ubuf_1d_float(%cast_71, %cast_72, %c0_i32, %cst_1, %c0) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32, index) -> ()
          hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
          %105 = hivm.hir.pointer_cast(%c0_i64) : memref<16x512xf32, #hivm.address_space<ub>>
          %collapse_shape_73 = memref.collapse_shape %105 [[0, 1]] : memref<16x512xf32, #hivm.address_space<ub>> into memref<8192xf32, #hivm.address_space<ub>>
          hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
          %106 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_74 = memref.cast %collapse_shape_70 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_75 = memref.cast %collapse_shape_73 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_76 = memref.cast %106 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vmuls_vs_1d_float(%cast_74, %arg31, %cast_75, %cast_76) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %107 = hivm.hir.pointer_cast(%c135936_i64) : memref<16x1xf32, #hivm.address_space<ub>>
          %108 = hivm.hir.pointer_cast(%c152704_i64) : memref<4096xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_77 = memref.cast %105 : memref<16x512xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_78 = memref.cast %107 : memref<16x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_79 = memref.cast %108 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @enablevc_reduce_max_ar_float(%cast_77, %cast_78, %cast_79, %cst_2) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) -> ()
          %collapse_shape_80 = memref.collapse_shape %107 [[0, 1]] : memref<16x1xf32, #hivm.address_space<ub>> into memref<16xf32, #hivm.address_space<ub>>
          %109 = hivm.hir.pointer_cast(%c136000_i64) : memref<16xi1, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_81 = memref.cast %collapse_shape_80 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_82 = memref.cast %collapse_shape_80 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_83 = memref.cast %109 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vcmp_eq_1d_float(%cast_81, %cast_82, %cast_83) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %110 = hivm.hir.pointer_cast(%c136000_i64) : memref<16xi1, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %111 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
          %cast_84 = memref.cast %109 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_85 = memref.cast %110 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_86 = memref.cast %111 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vnot_1d_bool(%cast_84, %cast_85, %cast_86) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %112 = hivm.hir.pointer_cast(%c136032_i64) : memref<16xi1, #hivm.address_space<ub>>
          %cast_87 = memref.cast %subview_67 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_88 = memref.cast %subview_67 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_89 = memref.cast %112 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vcmp_eq_1d_float(%cast_87, %cast_88, %cast_89) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %113 = hivm.hir.pointer_cast(%c136032_i64) : memref<16xi1, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %114 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
          %cast_90 = memref.cast %112 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_91 = memref.cast %113 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_92 = memref.cast %114 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vnot_1d_bool(%cast_90, %cast_91, %cast_92) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %115 = hivm.hir.pointer_cast(%c136064_i64) : memref<16xf32, #hivm.address_space<ub>>
          %116 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_93 = memref.cast %subview_67 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_94 = memref.cast %collapse_shape_80 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_95 = memref.cast %115 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_96 = memref.cast %116 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vmax_1d_float(%cast_93, %cast_94, %cast_95, %cast_96) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %117 = hivm.hir.pointer_cast(%c136128_i64) : memref<16xf32, #hivm.address_space<ub>>
          %118 = hivm.hir.pointer_cast(%c136192_i64) : memref<8xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_97 = memref.cast %113 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_98 = memref.cast %collapse_shape_80 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_99 = memref.cast %115 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_100 = memref.cast %117 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_101 = memref.cast %118 : memref<8xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vsel_vv_1d_bool_float(%cast_97, %cast_98, %cast_99, %cast_100, %cast_101) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %subview_102 = memref.subview %101[%103] [16] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          %119 = hivm.hir.pointer_cast(%c135936_i64) : memref<8xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_103 = memref.cast %110 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_104 = memref.cast %subview_67 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_105 = memref.cast %117 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_106 = memref.cast %subview_102 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_107 = memref.cast %119 : memref<8xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vsel_vv_1d_bool_float(%cast_103, %cast_104, %cast_105, %cast_106, %cast_107) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %subview_108 = memref.subview %6[%103] [16] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          %120 = hivm.hir.pointer_cast(%c135936_i64) : memref<16xi1, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_109 = memref.cast %subview_102 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_110 = memref.cast %subview_108 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_111 = memref.cast %120 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vcmp_eq_1d_float(%cast_109, %cast_110, %cast_111) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %121 = hivm.hir.pointer_cast(%c135968_i64) : memref<16xf32, #hivm.address_space<ub>>
          %122 = hivm.hir.pointer_cast(%c136032_i64) : memref<16xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_112 = memref.cast %120 : memref<16xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_113 = memref.cast %subview_102 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_114 = memref.cast %121 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_115 = memref.cast %122 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vsel_sv_1d_float(%cast_112, %cst_1, %cast_113, %cast_114, %cast_115) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %123 = hivm.hir.pointer_cast(%c136032_i64) : memref<16xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %124 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_116 = memref.cast %subview_67 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_117 = memref.cast %121 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_118 = memref.cast %123 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_119 = memref.cast %124 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vsub_1d_float(%cast_116, %cast_117, %cast_118, %cast_119) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %subview_120 = memref.subview %subview_62[%103] [16] [1] : memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %125 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_121 = memref.cast %123 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_122 = memref.cast %subview_120 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_123 = memref.cast %125 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vexp_1d_float(%cast_121, %cast_122, %cast_123) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %subview_124 = memref.subview %arg46[%103] [16] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          %126 = hivm.hir.pointer_cast(%c136032_i64) : memref<16xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %127 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_125 = memref.cast %subview_124 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_126 = memref.cast %subview_120 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_127 = memref.cast %126 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_128 = memref.cast %127 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vmul_1d_float(%cast_125, %cast_126, %cast_127, %cast_128) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %expand_shape_129 = memref.expand_shape %121 [[0, 1]] output_shape [16, 1] : memref<16xf32, #hivm.address_space<ub>> into memref<16x1xf32, #hivm.address_space<ub>>
          %128 = hivm.hir.pointer_cast(%c0_i64) : memref<16x512xf32, #hivm.address_space<ub>>
          %129 = hivm.hir.pointer_cast(%c136096_i64) : memref<128xf32, #hivm.address_space<ub>>
          %cast_130 = memref.cast %105 : memref<16x512xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_131 = memref.cast %expand_shape_129 : memref<16x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_132 = memref.cast %128 : memref<16x512xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_133 = memref.cast %129 : memref<128xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vsub_2d_float(%cast_130, %cast_131, %cast_132, %cast_133) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %130 = hivm.hir.pointer_cast(%c0_i64) : memref<16x512xf32, #hivm.address_space<ub>>
          %collapse_shape_134 = memref.collapse_shape %128 [[0, 1]] : memref<16x512xf32, #hivm.address_space<ub>> into memref<8192xf32, #hivm.address_space<ub>>
          %collapse_shape_135 = memref.collapse_shape %130 [[0, 1]] : memref<16x512xf32, #hivm.address_space<ub>> into memref<8192xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %131 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_136 = memref.cast %collapse_shape_134 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_137 = memref.cast %collapse_shape_135 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_138 = memref.cast %131 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vexp_1d_float(%cast_136, %cast_137, %cast_138) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %132 = hivm.hir.pointer_cast(%c135936_i64) : memref<16x1xf32, #hivm.address_space<ub>>
          %133 = hivm.hir.pointer_cast(%c152704_i64) : memref<4096xf32, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %cast_139 = memref.cast %130 : memref<16x512xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_140 = memref.cast %132 : memref<16x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
          %cast_141 = memref.cast %133 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @enablevc_reduce_sum_ar_float(%cast_139, %cast_140, %cast_141, %cst_1) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) -> ()
          %collapse_shape_142 = memref.collapse_shape %132 [[0, 1]] : memref<16x1xf32, #hivm.address_space<ub>> into memref<16xf32, #hivm.address_space<ub>>
          %subview_143 = memref.subview %102[%103] [16] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
          hivm.hir.pipe_barrier[<PIPE_V>]
          %134 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
          %cast_144 = memref.cast %126 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_145 = memref.cast %collapse_shape_142 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_146 = memref.cast %subview_143 : memref<16xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_147 = memref.cast %134 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vadd_1d_float(%cast_144, %cast_145, %cast_146, %cast_147) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
          %135 = hivm.hir.pointer_cast(%c0_i64) : memref<16x512xf16, #hivm.address_space<ub>>
          %collapse_shape_148 = memref.collapse_shape %135 [[0, 1]] : memref<16x512xf16, #hivm.address_space<ub>> into memref<8192xf16, #hivm.address_space<ub>>
          %cast_149 = memref.cast %collapse_shape_135 : memref<8192xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_150 = memref.cast %collapse_shape_148 : memref<8192xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
          func.call @vcast_float_to_half_1d_with_mode(%cast_149, %cast_150, %c0_i32) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
          hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
          %subview_151 = memref.subview %subview_64[%103, 0] [16, 512] [1, 1] : memref<32x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<16x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
          %collapse_shape_152 = memref.collapse_shape %subview_151 [[0, 1]] : memref<16x512xf16, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> into memref<8192xf16, strided<[1], offset: ?>, #hivm.address_space<gm>>
          hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
          %cast_153 = memref.cast %collapse_shape_148 : memref<8192xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
          %cast_154 = memref.cast %collapse_shape_152 : memref<8192xf16, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>
          func.call @store_ubuf_to_gm_1d_half(%cast_153, %cast_154, %c0_i32) : (memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>, i32) -> ()
          hivm.hir.set_flag[<PIPE_MTE3>, <PIPE_MTE2>, <EVENT_ID0>]
        }
        hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE3>, <PIPE_S>] flag = 1 ffts_base_addr = %arg0
        hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = %98 ffts_base_addr = %arg0
        hivm.hir.pipe_barrier[<PIPE_V>]
        %cast_65 = memref.cast %101 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        %cast_66 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        func.call @copy_ubuf_to_ubuf_1d_float(%cast_65, %cast_66, %c0_i32, %cst_1) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) -> ()
        scf.yield %102 : memref<32xf32, #hivm.address_space<ub>>
      } {hivm.loop_core_type = #hivm.tcore_type<VECTOR>, multibuffer_unroll_factor = 4 : i32}
      %subview_59 = memref.subview %view[0, %16, 0] [4, 32, 128] [1, 1, 1] {to_be_bubbled_slice} : memref<4x64x128xf32, #hivm.address_space<gm>> to memref<4x32x128xf32, strided<[8192, 128, 1], offset: ?>, #hivm.address_space<gm>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %96 = scf.for %arg45 = %c0 to %93 step %c1 iter_args(%arg46 = %arg44) -> (memref<32x128xf32, #hivm.address_space<ub>>) {
        %97 = affine.apply #map12()[%arg45]
        %98 = arith.index_cast %97 : index to i64
        %subview_60 = memref.subview %94[%arg45, 0] [1, 32] [1, 1] : memref<4x32xf32, #hivm.address_space<ub>> to memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<ub>>
        %expand_shape_61 = memref.expand_shape %subview_60 [[0, 1]] output_shape [32, 1] : memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<ub>> into memref<32x1xf32, strided<[1, 1], offset: ?>, #hivm.address_space<ub>>
        %99 = hivm.hir.pointer_cast(%c152704_i64) : memref<32x128xf32, #hivm.address_space<ub>>
        %100 = hivm.hir.pointer_cast(%c135808_i64) : memref<256xf32, #hivm.address_space<ub>>
        hivm.hir.pipe_barrier[<PIPE_V>]
        %cast_62 = memref.cast %arg46 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
        %cast_63 = memref.cast %expand_shape_61 : memref<32x1xf32, strided<[1, 1], offset: ?>, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
        %cast_64 = memref.cast %99 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
        %cast_65 = memref.cast %100 : memref<256xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        func.call @vmul_2d_float(%cast_62, %cast_63, %cast_64, %cast_65) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
        hivm.hir.sync_block_wait[<VECTOR>, <PIPE_FIX>, <PIPE_S>] flag = 0
        %subview_66 = memref.subview %subview_59[%arg45, 0, 0] [1, 32, 128] [1, 1, 1] : memref<4x32x128xf32, strided<[8192, 128, 1], offset: ?>, #hivm.address_space<gm>> to memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>>
        %101 = hivm.hir.pointer_cast(%c32768_i64) : memref<32x128xf32, #hivm.address_space<ub>>
        %collapse_shape_67 = memref.collapse_shape %subview_66 [[0, 1]] : memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>> into memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
        %collapse_shape_68 = memref.collapse_shape %101 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
        hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
        %cast_69 = memref.cast %collapse_shape_67 : memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>
        %cast_70 = memref.cast %collapse_shape_68 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        func.call @load_gm_to_ubuf_1d_float(%cast_69, %cast_70, %c0_i32, %cst_1, %c0) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32, index) -> ()
        hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
        hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = %98 ffts_base_addr = %arg0
        %102 = hivm.hir.pointer_cast(%c169216_i64) : memref<32x128xf32, #hivm.address_space<ub>>
        %collapse_shape_71 = memref.collapse_shape %99 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
        %collapse_shape_72 = memref.collapse_shape %102 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
        hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
        hivm.hir.pipe_barrier[<PIPE_V>]
        %103 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
        %cast_73 = memref.cast %collapse_shape_68 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        %cast_74 = memref.cast %collapse_shape_71 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        %cast_75 = memref.cast %collapse_shape_72 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        %cast_76 = memref.cast %103 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
        func.call @vadd_1d_float(%cast_73, %cast_74, %cast_75, %cast_76) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
        hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
        scf.yield %102 : memref<32x128xf32, #hivm.address_space<ub>>
      } {hivm.loop_core_type = #hivm.tcore_type<VECTOR>, multibuffer_unroll_factor = 4 : i32}
      scf.yield %95, %96 : memref<32xf32, #hivm.address_space<ub>>, memref<32x128xf32, #hivm.address_space<ub>>
    }
    hivm.hir.wait_flag[<PIPE_MTE3>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
    hivm.hir.set_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID0>]
    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 6
    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 7
    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 8
    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 9
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 12 ffts_base_addr = %arg0
    hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 13 ffts_base_addr = %arg0
    hivm.hir.wait_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID1>]
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID1>]
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
    %69:2 = scf.for %arg42 = %54 to %46 step %c128_i32 iter_args(%arg43 = %68#0, %arg44 = %68#1) -> (memref<32xf32, #hivm.address_space<ub>>, memref<32x128xf32, #hivm.address_space<ub>>)  : i32 {
      %92 = hivm.hir.pointer_cast(%c135296_i64) : memref<128xi32, #hivm.address_space<ub>>
      %93 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi32, #hivm.address_space<ub>>
      %cast_58 = memref.cast %7 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_59 = memref.cast %92 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_60 = memref.cast %93 : memref<0xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vadds_vs_1d_int32_t(%cast_58, %arg42, %cast_59, %cast_60) : (memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %94 = hivm.hir.pointer_cast(%c135808_i64) : memref<128xi32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %95 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi32, #hivm.address_space<ub>>
      %cast_61 = memref.cast %92 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_62 = memref.cast %94 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_63 = memref.cast %95 : memref<0xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vmaxs_vs_1d_int32_t(%cast_61, %arg38, %cast_62, %cast_63) : (memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %96 = hivm.hir.pointer_cast(%c135808_i64) : memref<128xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_64 = memref.cast %94 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_65 = memref.cast %92 : memref<128xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_66 = memref.cast %96 : memref<128xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmp_eq_1d_int32_t(%cast_64, %cast_65, %cast_66) : (memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %97 = hivm.hir.pointer_cast(%c135808_i64) : memref<128xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %98 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
      %cast_67 = memref.cast %96 : memref<128xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_68 = memref.cast %97 : memref<128xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_69 = memref.cast %98 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vnot_1d_bool(%cast_67, %cast_68, %cast_69) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %99 = hivm.hir.get_block_idx -> i64
      %100 = arith.index_cast %99 : i64 to index
      %101 = affine.apply #map18(%100)
      %view_70 = memref.view %arg2[%101][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf32, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<VECTOR>, <PIPE_FIX>, <PIPE_S>] flag = 0
      %subview_71 = memref.subview %view_70[%16, 0] [32, 128] [1, 1] {to_be_bubbled_slice} : memref<64x128xf32, #hivm.address_space<gm>> to memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>>
      %102 = hivm.hir.pointer_cast(%c49152_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_72 = memref.collapse_shape %subview_71 [[0, 1]] : memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>> into memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
      %collapse_shape_73 = memref.collapse_shape %102 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID0>]
      %cast_74 = memref.cast %collapse_shape_72 : memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>
      %cast_75 = memref.cast %collapse_shape_73 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @load_gm_to_ubuf_1d_float(%cast_74, %cast_75, %c0_i32, %cst_1, %c0) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32, index) -> ()
      hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 12 ffts_base_addr = %arg0
      %103 = hivm.hir.pointer_cast(%c49152_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_76 = memref.collapse_shape %103 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      %104 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_77 = memref.cast %collapse_shape_73 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_78 = memref.cast %collapse_shape_76 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_79 = memref.cast %104 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vmuls_vs_1d_float(%cast_77, %arg31, %cast_78, %cast_79) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %105 = hivm.hir.pointer_cast(%c135296_i64) : memref<128xf16, #hivm.address_space<ub>>
      %106 = hivm.hir.pointer_cast(%c135552_i64) : memref<48xf16, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_80 = memref.cast %97 : memref<128xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_81 = memref.cast %105 : memref<128xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_82 = memref.cast %106 : memref<48xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcast_bool_to_half_1d_with_temp(%cast_80, %cast_81, %cast_82, %c4_i32) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
      %expand_shape_83 = memref.expand_shape %105 [[0, 1]] output_shape [1, 128] : memref<128xf16, #hivm.address_space<ub>> into memref<1x128xf16, #hivm.address_space<ub>>
      %107 = hivm.hir.pointer_cast(%c135552_i64) : memref<32x128xf16, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_84 = memref.cast %expand_shape_83 : memref<1x128xf16, #hivm.address_space<ub>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_85 = memref.cast %107 : memref<32x128xf16, #hivm.address_space<ub>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      func.call @broadcast_first_axis_align_2d_half(%cast_84, %cast_85) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %108 = hivm.hir.pointer_cast(%c135552_i64) : memref<32x128xi1, #hivm.address_space<ub>>
      %collapse_shape_86 = memref.collapse_shape %107 [[0, 1]] : memref<32x128xf16, #hivm.address_space<ub>> into memref<4096xf16, #hivm.address_space<ub>>
      %collapse_shape_87 = memref.collapse_shape %108 [[0, 1]] : memref<32x128xi1, #hivm.address_space<ub>> into memref<4096xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_88 = memref.cast %collapse_shape_86 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_89 = memref.cast %collapse_shape_87 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmps_eq_1d_half(%cast_88, %cst, %cast_89) : (memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, f16, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %109 = hivm.hir.pointer_cast(%c135552_i64) : memref<32x128xi1, #hivm.address_space<ub>>
      %collapse_shape_90 = memref.collapse_shape %109 [[0, 1]] : memref<32x128xi1, #hivm.address_space<ub>> into memref<4096xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %110 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
      %cast_91 = memref.cast %collapse_shape_87 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_92 = memref.cast %collapse_shape_90 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_93 = memref.cast %110 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vnot_1d_bool(%cast_91, %cast_92, %cast_93) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %111 = hivm.hir.pointer_cast(%c152704_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_94 = memref.collapse_shape %111 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      %112 = hivm.hir.pointer_cast(%c135296_i64) : memref<16xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_95 = memref.cast %collapse_shape_90 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_96 = memref.cast %collapse_shape_76 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_97 = memref.cast %collapse_shape_94 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_98 = memref.cast %112 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsel_vs_1d_float(%cast_95, %cast_96, %cst_2, %cast_97, %cast_98) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID0>]
      %113 = arith.subi %42, %arg42 : i32
      %114 = arith.maxsi %113, %c0_i32 : i32
      %115 = arith.minsi %114, %c128_i32 : i32
      %116 = arith.muli %115, %c512_i32 : i32
      %117 = arith.subi %c0_i32, %113 : i32
      %118 = arith.maxsi %117, %c0_i32 : i32
      %119 = arith.minsi %118, %c64_i32 : i32
      %120 = arith.addi %116, %119 : i32
      %121 = arith.index_cast %120 : i32 to index
      %reinterpret_cast_99 = memref.reinterpret_cast %arg8 to offset: [%121], sizes: [64, 128], strides: [512, 1] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xi8, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
      %subview_100 = memref.subview %reinterpret_cast_99[%16, 0] [32, 128] [1, 1] {to_be_bubbled_slice} : memref<64x128xi8, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<32x128xi8, strided<[512, 1], offset: ?>, #hivm.address_space<gm>>
      %122 = hivm.hir.pointer_cast(%c65536_i64) : memref<32x128xi8, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID1>]
      %cast_101 = memref.cast %subview_100 : memref<32x128xi8, strided<[512, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
      %cast_102 = memref.cast %122 : memref<32x128xi8, #hivm.address_space<ub>> to memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      func.call @load_gm_to_ubuf_2d_int8_t(%cast_101, %cast_102, %c0_i32, %c0_i8, %c0) : (memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, memref<?x?xi8, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, i32, i8, index) -> ()
      hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      %123 = hivm.hir.pointer_cast(%c135296_i64) : memref<32x128xf16, #hivm.address_space<ub>>
      %collapse_shape_103 = memref.collapse_shape %122 [[0, 1]] : memref<32x128xi8, #hivm.address_space<ub>> into memref<4096xi8, #hivm.address_space<ub>>
      %collapse_shape_104 = memref.collapse_shape %123 [[0, 1]] : memref<32x128xf16, #hivm.address_space<ub>> into memref<4096xf16, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_105 = memref.cast %collapse_shape_103 : memref<4096xi8, #hivm.address_space<ub>> to memref<?xi8, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_106 = memref.cast %collapse_shape_104 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcast_int8_t_to_half_1d_with_mode(%cast_105, %cast_106, %c0_i32) : (memref<?xi8, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
      hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID1>]
      %124 = hivm.hir.pointer_cast(%c0_i64) : memref<32x128xi32, #hivm.address_space<ub>>
      %collapse_shape_107 = memref.collapse_shape %124 [[0, 1]] : memref<32x128xi32, #hivm.address_space<ub>> into memref<4096xi32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_108 = memref.cast %collapse_shape_104 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_109 = memref.cast %collapse_shape_107 : memref<4096xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcast_half_to_int32_t_1d_with_mode(%cast_108, %cast_109, %c4_i32) : (memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
      %125 = hivm.hir.pointer_cast(%c0_i64) : memref<32x128xi1, #hivm.address_space<ub>>
      %collapse_shape_110 = memref.collapse_shape %125 [[0, 1]] : memref<32x128xi1, #hivm.address_space<ub>> into memref<4096xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_111 = memref.cast %collapse_shape_107 : memref<4096xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_112 = memref.cast %collapse_shape : memref<4096xi32, #hivm.address_space<ub>> to memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_113 = memref.cast %collapse_shape_110 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmp_eq_1d_int32_t(%cast_111, %cast_112, %cast_113) : (memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %126 = hivm.hir.pointer_cast(%c69632_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_114 = memref.collapse_shape %126 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      %127 = hivm.hir.pointer_cast(%c16384_i64) : memref<16xf32, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID1>]
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_115 = memref.cast %collapse_shape_110 : memref<4096xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_116 = memref.cast %collapse_shape_94 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_117 = memref.cast %collapse_shape_114 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_118 = memref.cast %127 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsel_vs_1d_float(%cast_115, %cast_116, %cst_2, %cast_117, %cast_118) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %128 = hivm.hir.pointer_cast(%c16448_i64) : memref<32x1xf32, #hivm.address_space<ub>>
      %129 = hivm.hir.pointer_cast(%c16576_i64) : memref<2048xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_119 = memref.cast %126 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_120 = memref.cast %128 : memref<32x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_121 = memref.cast %129 : memref<2048xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @enablevc_reduce_max_ar_float(%cast_119, %cast_120, %cast_121, %cst_2) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) -> ()
      %collapse_shape_122 = memref.collapse_shape %128 [[0, 1]] : memref<32x1xf32, #hivm.address_space<ub>> into memref<32xf32, #hivm.address_space<ub>>
      %130 = hivm.hir.pointer_cast(%c24768_i64) : memref<32xi1, #hivm.address_space<ub>>
      %cast_123 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_124 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_125 = memref.cast %130 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmp_eq_1d_float(%cast_123, %cast_124, %cast_125) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %131 = hivm.hir.pointer_cast(%c24768_i64) : memref<32xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %132 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
      %cast_126 = memref.cast %130 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_127 = memref.cast %131 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_128 = memref.cast %132 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vnot_1d_bool(%cast_126, %cast_127, %cast_128) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %133 = hivm.hir.pointer_cast(%c24800_i64) : memref<32xi1, #hivm.address_space<ub>>
      %cast_129 = memref.cast %collapse_shape_122 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_130 = memref.cast %collapse_shape_122 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_131 = memref.cast %133 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmp_eq_1d_float(%cast_129, %cast_130, %cast_131) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %134 = hivm.hir.pointer_cast(%c24800_i64) : memref<32xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %135 = hivm.hir.pointer_cast(%c0_i64) : memref<0xi1, #hivm.address_space<ub>>
      %cast_132 = memref.cast %133 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_133 = memref.cast %134 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_134 = memref.cast %135 : memref<0xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vnot_1d_bool(%cast_132, %cast_133, %cast_134) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %136 = hivm.hir.pointer_cast(%c24832_i64) : memref<32xf32, #hivm.address_space<ub>>
      %137 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_135 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_136 = memref.cast %collapse_shape_122 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_137 = memref.cast %136 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_138 = memref.cast %137 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vmax_1d_float(%cast_135, %cast_136, %cast_137, %cast_138) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %138 = hivm.hir.pointer_cast(%c24960_i64) : memref<32xf32, #hivm.address_space<ub>>
      %139 = hivm.hir.pointer_cast(%c25088_i64) : memref<8xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_139 = memref.cast %131 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_140 = memref.cast %collapse_shape_122 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_141 = memref.cast %136 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_142 = memref.cast %138 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_143 = memref.cast %139 : memref<8xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsel_vv_1d_bool_float(%cast_139, %cast_140, %cast_141, %cast_142, %cast_143) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %140 = hivm.hir.pointer_cast(%c25120_i64) : memref<32xf32, #hivm.address_space<ub>>
      %141 = hivm.hir.pointer_cast(%c25248_i64) : memref<8xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_144 = memref.cast %134 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_145 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_146 = memref.cast %138 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_147 = memref.cast %140 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_148 = memref.cast %141 : memref<8xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsel_vv_1d_bool_float(%cast_144, %cast_145, %cast_146, %cast_147, %cast_148) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %142 = hivm.hir.pointer_cast(%c25280_i64) : memref<32xi1, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_149 = memref.cast %140 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_150 = memref.cast %6 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_151 = memref.cast %142 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcmp_eq_1d_float(%cast_149, %cast_150, %cast_151) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %143 = hivm.hir.pointer_cast(%c25312_i64) : memref<32xf32, #hivm.address_space<ub>>
      %144 = hivm.hir.pointer_cast(%c25440_i64) : memref<16xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_152 = memref.cast %142 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_153 = memref.cast %140 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_154 = memref.cast %143 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_155 = memref.cast %144 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsel_sv_1d_float(%cast_152, %cst_1, %cast_153, %cast_154, %cast_155) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %expand_shape_156 = memref.expand_shape %143 [[0, 1]] output_shape [32, 1] : memref<32xf32, #hivm.address_space<ub>> into memref<32x1xf32, #hivm.address_space<ub>>
      %145 = hivm.hir.pointer_cast(%c69632_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %146 = hivm.hir.pointer_cast(%c25504_i64) : memref<256xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %cast_157 = memref.cast %126 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_158 = memref.cast %expand_shape_156 : memref<32x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_159 = memref.cast %145 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_160 = memref.cast %146 : memref<256xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsub_2d_float(%cast_157, %cast_158, %cast_159, %cast_160) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %147 = hivm.hir.pointer_cast(%c69632_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_161 = memref.collapse_shape %145 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      %collapse_shape_162 = memref.collapse_shape %147 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %148 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_163 = memref.cast %collapse_shape_161 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_164 = memref.cast %collapse_shape_162 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_165 = memref.cast %148 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vexp_1d_float(%cast_163, %cast_164, %cast_165) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %149 = hivm.hir.pointer_cast(%c25312_i64) : memref<32xf32, #hivm.address_space<ub>>
      %150 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_166 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_167 = memref.cast %143 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_168 = memref.cast %149 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_169 = memref.cast %150 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vsub_1d_float(%cast_166, %cast_167, %cast_168, %cast_169) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %151 = hivm.hir.pointer_cast(%c25312_i64) : memref<32xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %152 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_170 = memref.cast %149 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_171 = memref.cast %151 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_172 = memref.cast %152 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vexp_1d_float(%cast_170, %cast_171, %cast_172) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %153 = hivm.hir.pointer_cast(%c26528_i64) : memref<32xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %154 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_173 = memref.cast %arg43 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_174 = memref.cast %151 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_175 = memref.cast %153 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_176 = memref.cast %154 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vmul_1d_float(%cast_173, %cast_174, %cast_175, %cast_176) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %155 = hivm.hir.pointer_cast(%c26656_i64) : memref<32x1xf32, #hivm.address_space<ub>>
      %156 = hivm.hir.pointer_cast(%c26784_i64) : memref<2048xf32, #hivm.address_space<ub>>
      %cast_177 = memref.cast %147 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_178 = memref.cast %155 : memref<32x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_179 = memref.cast %156 : memref<2048xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @enablevc_reduce_sum_ar_float(%cast_177, %cast_178, %cast_179, %cst_1) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32) -> ()
      %collapse_shape_180 = memref.collapse_shape %155 [[0, 1]] : memref<32x1xf32, #hivm.address_space<ub>> into memref<32xf32, #hivm.address_space<ub>>
      %157 = hivm.hir.pointer_cast(%c169088_i64) : memref<32xf32, #hivm.address_space<ub>>
      hivm.hir.pipe_barrier[<PIPE_V>]
      %158 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_181 = memref.cast %153 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_182 = memref.cast %collapse_shape_180 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_183 = memref.cast %157 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_184 = memref.cast %158 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vadd_1d_float(%cast_181, %cast_182, %cast_183, %cast_184) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %expand_shape_185 = memref.expand_shape %151 [[0, 1]] output_shape [32, 1] : memref<32xf32, #hivm.address_space<ub>> into memref<32x1xf32, #hivm.address_space<ub>>
      %159 = hivm.hir.pointer_cast(%c102400_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %160 = hivm.hir.pointer_cast(%c34976_i64) : memref<256xf32, #hivm.address_space<ub>>
      %cast_186 = memref.cast %arg44 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_187 = memref.cast %expand_shape_185 : memref<32x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_188 = memref.cast %159 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
      %cast_189 = memref.cast %160 : memref<256xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vmul_2d_float(%cast_186, %cast_187, %cast_188, %cast_189) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      %161 = hivm.hir.pointer_cast(%c69632_i64) : memref<32x128xf16, #hivm.address_space<ub>>
      %collapse_shape_190 = memref.collapse_shape %161 [[0, 1]] : memref<32x128xf16, #hivm.address_space<ub>> into memref<4096xf16, #hivm.address_space<ub>>
      %cast_191 = memref.cast %collapse_shape_162 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_192 = memref.cast %collapse_shape_190 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vcast_float_to_half_1d_with_mode(%cast_191, %cast_192, %c0_i32) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
      hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
      %162 = hivm.hir.get_block_idx -> i64
      %163 = arith.index_cast %162 : i64 to index
      %164 = affine.apply #map19(%163)
      %view_193 = memref.view %arg2[%164][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf16, #hivm.address_space<gm>>
      %subview_194 = memref.subview %view_193[%16, 0] [32, 128] [1, 1] {to_be_bubbled_slice} : memref<64x128xf16, #hivm.address_space<gm>> to memref<32x128xf16, strided<[128, 1], offset: ?>, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 9
      %collapse_shape_195 = memref.collapse_shape %subview_194 [[0, 1]] : memref<32x128xf16, strided<[128, 1], offset: ?>, #hivm.address_space<gm>> into memref<4096xf16, strided<[1], offset: ?>, #hivm.address_space<gm>>
      hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
      %cast_196 = memref.cast %collapse_shape_190 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_197 = memref.cast %collapse_shape_195 : memref<4096xf16, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>
      func.call @store_ubuf_to_gm_1d_half(%cast_196, %cast_197, %c0_i32) : (memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<gm>>, i32) -> ()
      hivm.hir.set_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID1>]
      hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE3>, <PIPE_S>] flag = 1 ffts_base_addr = %arg0
      %165 = hivm.hir.get_block_idx -> i64
      %166 = arith.index_cast %165 : i64 to index
      %167 = affine.apply #map20(%166)
      %view_198 = memref.view %arg2[%167][] : memref<?xi8, #hivm.address_space<gm>> to memref<64x128xf32, #hivm.address_space<gm>>
      hivm.hir.sync_block_wait[<VECTOR>, <PIPE_FIX>, <PIPE_S>] flag = 0
      %subview_199 = memref.subview %view_198[%16, 0] [32, 128] [1, 1] {to_be_bubbled_slice} : memref<64x128xf32, #hivm.address_space<gm>> to memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>>
      %168 = hivm.hir.pointer_cast(%c86016_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_200 = memref.collapse_shape %subview_199 [[0, 1]] : memref<32x128xf32, strided<[128, 1], offset: ?>, #hivm.address_space<gm>> into memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
      %collapse_shape_201 = memref.collapse_shape %168 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
      %cast_202 = memref.cast %collapse_shape_200 : memref<4096xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>
      %cast_203 = memref.cast %collapse_shape_201 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @load_gm_to_ubuf_1d_float(%cast_202, %cast_203, %c0_i32, %cst_1, %c0) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32, index) -> ()
      hivm.hir.set_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      hivm.hir.sync_block_set[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 13 ffts_base_addr = %arg0
      %169 = hivm.hir.pointer_cast(%c169216_i64) : memref<32x128xf32, #hivm.address_space<ub>>
      %collapse_shape_204 = memref.collapse_shape %159 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      %collapse_shape_205 = memref.collapse_shape %169 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
      hivm.hir.wait_flag[<PIPE_MTE2>, <PIPE_V>, <EVENT_ID0>]
      hivm.hir.pipe_barrier[<PIPE_V>]
      %170 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
      %cast_206 = memref.cast %collapse_shape_201 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_207 = memref.cast %collapse_shape_204 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_208 = memref.cast %collapse_shape_205 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_209 = memref.cast %170 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @vadd_1d_float(%cast_206, %cast_207, %cast_208, %cast_209) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
      hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
      %cast_210 = memref.cast %140 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      %cast_211 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
      func.call @copy_ubuf_to_ubuf_1d_float(%cast_210, %cast_211, %c0_i32, %cst_1) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32, f32) -> ()
      scf.yield %157, %169 : memref<32xf32, #hivm.address_space<ub>>, memref<32x128xf32, #hivm.address_space<ub>>
    } {fixpipe_for_mmad_result_already_inserted = true}
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID0>]
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID1>]
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE2>, <EVENT_ID2>]
    hivm.hir.wait_flag[<PIPE_MTE3>, <PIPE_V>, <EVENT_ID1>]
    hivm.hir.sync_block_wait[<VECTOR>, <PIPE_MTE2>, <PIPE_S>] flag = 9
    %70 = hivm.hir.pointer_cast(%c151680_i64) : memref<32xi1, #hivm.address_space<ub>>
    %cast_18 = memref.cast %69#0 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_19 = memref.cast %5 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_20 = memref.cast %70 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vcmp_eq_1d_float(%cast_18, %cast_19, %cast_20) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %71 = hivm.hir.pointer_cast(%c118912_i64) : memref<32xf32, #hivm.address_space<ub>>
    %72 = hivm.hir.pointer_cast(%c119040_i64) : memref<16xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %cast_21 = memref.cast %70 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_22 = memref.cast %69#0 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_23 = memref.cast %71 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_24 = memref.cast %72 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vsel_sv_1d_float(%cast_21, %cst_0, %cast_22, %cast_23, %cast_24) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %73 = hivm.hir.pointer_cast(%c152448_i64) : memref<32xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %74 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
    %cast_25 = memref.cast %9 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_26 = memref.cast %71 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_27 = memref.cast %73 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_28 = memref.cast %74 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vdiv_1d_float(%cast_25, %cast_26, %cast_27, %cast_28) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %75 = arith.muli %25, %10 : i64
    %76 = arith.muli %33, %11 : i64
    %77 = arith.muli %32, %12 : i64
    %78 = arith.addi %76, %77 : i64
    %79 = arith.addi %75, %78 : i64
    %80 = arith.index_cast %79 : i64 to index
    %reinterpret_cast = memref.reinterpret_cast %arg6 to offset: [%80], sizes: [64, 128], strides: [%13, 1] : memref<?xf16, #hivm.address_space<gm>> to memref<64x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
    %subview = memref.subview %reinterpret_cast[%16, 0] [32, 128] [1, 1] {to_be_bubbled_slice} : memref<64x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<32x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
    %expand_shape = memref.expand_shape %73 [[0, 1]] output_shape [32, 1] : memref<32xf32, #hivm.address_space<ub>> into memref<32x1xf32, #hivm.address_space<ub>>
    %81 = hivm.hir.pointer_cast(%c102400_i64) : memref<32x128xf32, #hivm.address_space<ub>>
    %82 = hivm.hir.pointer_cast(%c119040_i64) : memref<256xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %cast_29 = memref.cast %69#1 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
    %cast_30 = memref.cast %expand_shape : memref<32x1xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
    %cast_31 = memref.cast %81 : memref<32x128xf32, #hivm.address_space<ub>> to memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
    %cast_32 = memref.cast %82 : memref<256xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vmul_2d_float(%cast_29, %cast_30, %cast_31, %cast_32) : (memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf32, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %83 = hivm.hir.pointer_cast(%c102400_i64) : memref<32x128xf16, #hivm.address_space<ub>>
    %collapse_shape_33 = memref.collapse_shape %81 [[0, 1]] : memref<32x128xf32, #hivm.address_space<ub>> into memref<4096xf32, #hivm.address_space<ub>>
    %collapse_shape_34 = memref.collapse_shape %83 [[0, 1]] : memref<32x128xf16, #hivm.address_space<ub>> into memref<4096xf16, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %cast_35 = memref.cast %collapse_shape_33 : memref<4096xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_36 = memref.cast %collapse_shape_34 : memref<4096xf16, #hivm.address_space<ub>> to memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vcast_float_to_half_1d_with_mode(%cast_35, %cast_36, %c0_i32) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf16, strided<[?], offset: ?>, #hivm.address_space<ub>>, i32) -> ()
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
    %84 = affine.min #map24()[%15, %35]
    %85 = affine.min #map25()[%36, %84]
    %subview_37 = memref.subview %83[0, 0] [%85, 128] [1, 1] : memref<32x128xf16, #hivm.address_space<ub>> to memref<?x128xf16, strided<[128, 1]>, #hivm.address_space<ub>>
    %subview_38 = memref.subview %subview[0, 0] [%85, 128] [1, 1] : memref<32x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>>
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
    %cast_39 = memref.cast %subview_37 : memref<?x128xf16, strided<[128, 1]>, #hivm.address_space<ub>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>
    %cast_40 = memref.cast %subview_38 : memref<?x128xf16, strided<[?, 1], offset: ?>, #hivm.address_space<gm>> to memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>
    call @store_ubuf_to_gm_2d_half(%cast_39, %cast_40, %c0_i32) : (memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<ub>>, memref<?x?xf16, strided<[?, ?], offset: ?>, #hivm.address_space<gm>>, i32) -> ()
    %86 = hivm.hir.pointer_cast(%c118912_i64) : memref<32xf32, #hivm.address_space<ub>>
    %87 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
    %cast_41 = memref.cast %71 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_42 = memref.cast %86 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_43 = memref.cast %87 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vln_1d_float(%cast_41, %cast_42, %cast_43) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %88 = hivm.hir.pointer_cast(%c118912_i64) : memref<32xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %89 = hivm.hir.pointer_cast(%c0_i64) : memref<0xf32, #hivm.address_space<ub>>
    %cast_44 = memref.cast %66 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_45 = memref.cast %86 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_46 = memref.cast %88 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_47 = memref.cast %89 : memref<0xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vadd_1d_float(%cast_44, %cast_45, %cast_46, %cast_47) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    %90 = hivm.hir.pointer_cast(%c118784_i64) : memref<32xf32, #hivm.address_space<ub>>
    %91 = hivm.hir.pointer_cast(%c119040_i64) : memref<16xf32, #hivm.address_space<ub>>
    hivm.hir.pipe_barrier[<PIPE_V>]
    %cast_48 = memref.cast %70 : memref<32xi1, #hivm.address_space<ub>> to memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_49 = memref.cast %88 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_50 = memref.cast %90 : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_51 = memref.cast %91 : memref<16xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    call @vsel_sv_1d_float(%cast_48, %cst_2, %cast_49, %cast_50, %cast_51) : (memref<?xi1, strided<[?], offset: ?>, #hivm.address_space<ub>>, f32, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>) -> ()
    hivm.hir.set_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
    %reinterpret_cast_52 = memref.reinterpret_cast %arg7 to offset: [%31], sizes: [64], strides: [1] : memref<?xf32, #hivm.address_space<gm>> to memref<64xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
    %subview_53 = memref.subview %reinterpret_cast_52[%16] [32] [1] {to_be_bubbled_slice} : memref<64xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
    %subview_54 = memref.subview %90[0] [%85] [1] : memref<32xf32, #hivm.address_space<ub>> to memref<?xf32, strided<[1]>, #hivm.address_space<ub>>
    %subview_55 = memref.subview %subview_53[0] [%85] [1] : memref<32xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[1], offset: ?>, #hivm.address_space<gm>>
    hivm.hir.wait_flag[<PIPE_V>, <PIPE_MTE3>, <EVENT_ID0>]
    %cast_56 = memref.cast %subview_54 : memref<?xf32, strided<[1]>, #hivm.address_space<ub>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>
    %cast_57 = memref.cast %subview_55 : memref<?xf32, strided<[1], offset: ?>, #hivm.address_space<gm>> to memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>
    call @store_ubuf_to_gm_1d_float(%cast_56, %cast_57, %c0_i32) : (memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<ub>>, memref<?xf32, strided<[?], offset: ?>, #hivm.address_space<gm>>, i32) -> ()
    hivm.hir.pipe_barrier[<PIPE_ALL>]
    return
  }
}
