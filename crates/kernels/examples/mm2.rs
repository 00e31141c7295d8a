use hybridnorm_kernels::matmul::*; use half::bf16;
fn main(){
  rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
  let (m,k,n)=(2048usize,128usize,384usize);
    let x:Vec<bf16>=(0..m*k).map(|i|bf16::from_f32(((i*7919)%1000) as f32/1000.0-0.5)).collect();
    let xf:Vec<f32>=(0..m*k).map(|i|((i*7919)%1000) as f32/1000.0-0.5).collect();
    let w:Vec<f32>=(0..n*k).map(|i|((i*104729)%1000) as f32/1000.0-0.5).collect();
    let dy:Vec<f32>=(0..m*n).map(|i|((i*104729)%1000) as f32/1000.0-0.5).collect();
    let mut y=vec![bf16::ZERO;m*n]; let mut dw=vec![0f32;n*k];
  let p=Precision::Bf16; let pk=Packed::transposed(p,Matrix::new(&w[..],n,k));
  let which=std::env::args().nth(1).unwrap();
  let t=std::time::Instant::now();
  for _ in 0..1500 { if which=="y" { multiply(Matrix::new(&x[..],m,k),&pk,MatrixMut::new(&mut y[..],m,n),1.0) } else { multiply_transposed(Precision::F32,Matrix::new(&dy[..],m,n),Matrix::new(&xf[..],m,k),MatrixMut::new(&mut dw[..],n,k),1.0,false) } }
  println!("{} GFLOP/s",1500.0*2.0*(m*n*k) as f64/t.elapsed().as_secs_f64()/1e9);
}
