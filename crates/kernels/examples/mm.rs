use hybridnorm_kernels::matmul::*;
use hybridnorm_kernels::linear;
use half::bf16;
use std::time::Instant;
fn bench(name:&str,flops:f64,mut f:impl FnMut()){ f(); let mut best=f64::MAX; let t0=Instant::now(); while t0.elapsed().as_secs_f64()<0.4 { let t=Instant::now(); f(); best=best.min(t.elapsed().as_secs_f64()); } println!("{name:40} {:8.1} GFLOP/s {:8.1} us",flops/best/1e9,best*1e6); }
fn main(){
  rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
  for (m,k,n) in [(2048usize,128usize,384usize),(2048,128,128),(2048,384,1152),(2048,384,2048),(2048,1024,384),(1024,768,2304),(1024,768,4096),(1024,2048,768),(2048,384,8192),(64,384,1152)] {
    println!("m {m} k {k} n {n}");
    let fl=2.0*(m*k*n) as f64;
    let x:Vec<f32>=(0..m*k).map(|i|((i*7919)%1000) as f32/1000.0-0.5).collect();
    let w:Vec<f32>=(0..n*k).map(|i|((i*104729)%1000) as f32/1000.0-0.5).collect();
    let dy:Vec<f32>=(0..m*n).map(|i|((i*104729)%1000) as f32/1000.0-0.5).collect();
    let mut y=vec![0f32;m*n]; let mut dx=vec![0f32;m*k]; let mut dw=vec![0f32;n*k];
    bench("gemm y",fl,||linear::forward(&x,&w,&mut y,k,n));
    bench("gemm dx",fl,||linear::backward_input(&dy,&w,&mut dx,k,n));
    bench("gemm dw",fl,||linear::backward_weight(&dy,&x,&mut dw,k,n));
    for p in [Precision::F32,Precision::Bf16] {
     println!("{p:?}");
     let xb:Vec<bf16>=x.iter().map(|x|bf16::from_f32(*x)).collect();
     let dyb:Vec<bf16>=dy.iter().map(|x|bf16::from_f32(*x)).collect();
     let mut yb=vec![bf16::ZERO;m*n]; let mut dxb=vec![bf16::ZERO;m*k];
     let pk=Packed::transposed(p,Matrix::new(&w[..],n,k)); let pb=Packed::new(p,Matrix::new(&w[..],n,k));
     bench("pack transposed",fl,||{std::hint::black_box(Packed::transposed(p,Matrix::new(&w[..],n,k)));});
     bench("pack plain",fl,||{std::hint::black_box(Packed::new(p,Matrix::new(&w[..],n,k)));});
     if p==Precision::F32 {
      bench("y",fl,||multiply(Matrix::new(&x[..],m,k),&pk,MatrixMut::new(&mut y[..],m,n),1.0));
      bench("dx",fl,||multiply(Matrix::new(&dy[..],m,n),&pb,MatrixMut::new(&mut dx[..],m,k),1.0));
      bench("dw",fl,||multiply_transposed(p,Matrix::new(&dy[..],m,n),Matrix::new(&x[..],m,k),MatrixMut::new(&mut dw[..],n,k),1.0,false));
     } else {
      bench("y",fl,||multiply(Matrix::new(&xb[..],m,k),&pk,MatrixMut::new(&mut yb[..],m,n),1.0));
      bench("dx",fl,||multiply(Matrix::new(&dyb[..],m,n),&pb,MatrixMut::new(&mut dxb[..],m,k),1.0));
      bench("dw",fl,||multiply_transposed(p,Matrix::new(&dyb[..],m,n),Matrix::new(&xb[..],m,k),MatrixMut::new(&mut dw[..],n,k),1.0,false));
     }
    }
  }
}
